"""One copy of a model's weights for all workers, by file or by Ray's object store.

May import: _errors.
"""
