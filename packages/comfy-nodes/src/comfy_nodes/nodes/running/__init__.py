"""What a node does when it runs: its class for the host, its request, its output.

May import: _controls, _errors, table.
"""
