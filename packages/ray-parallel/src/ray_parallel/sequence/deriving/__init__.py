"""Plans derived from models by trial, and their files.

May import: plan, ranks, running.
"""
