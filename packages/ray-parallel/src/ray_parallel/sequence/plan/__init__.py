"""What a plan says, whether it fits a model, and which model has which plan.

May import: nothing.
"""
