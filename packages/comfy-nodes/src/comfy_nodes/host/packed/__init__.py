"""Packed weights (GGUF, lossless bf16) as quantised tensors of the host.

May import: _errors, app, placing.
"""
