"""`torchspan demo`: a small model planned, placed, streamed, split and compared.

May import: _exit, _output, _parser, _source.
"""
