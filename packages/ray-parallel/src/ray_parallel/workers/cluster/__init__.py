"""A Ray cluster: started and ended completely, or used by its address.

May import: _errors, weights.
"""
