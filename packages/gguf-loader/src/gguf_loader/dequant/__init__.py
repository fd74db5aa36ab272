"""Dequantisation: blocks to weights, bit for bit those of ggml, by eager torch or Triton.

May import: _backend, _dtypes, _errors, _scratch, _types.
"""
