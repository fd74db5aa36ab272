"""Workflows that older versions saved, in today's inputs.

May import: _controls, _errors, table.
"""
