"""Workers that work on one call together, supervised.

May import: _errors, cluster, weights.
"""
