"""The allocation language: what a user asked for, as integer byte budgets."""
