"""The loaders: files in, the host's own objects out, with their layers placed.

May import: _errors, _request, app, packed, placing.
"""
