"""Text encoders in llama.cpp's names: names and row order back, vision parts, tokenizers.

May import: _errors, _load, _types, file, packed.
"""
