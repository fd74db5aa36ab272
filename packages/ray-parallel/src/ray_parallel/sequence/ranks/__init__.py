"""Who computes which tokens, and how the ranks exchange them: process groups or threads.

May import: plan.
"""
