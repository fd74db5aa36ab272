"""Which nodes there are: published ids, their inputs in order, and what they load.

May import: _errors.
"""
