"""Reading a GGUF file: its header, metadata and tensor records, checked against limits, and its bytes mapped.

May import: _dtypes, _errors, _types.
"""
