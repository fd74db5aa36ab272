"""A plan put on a model: arguments cut, attention caught, streams joined.

May import: plan, ranks.
"""
