"""Backends: how bytes are stored on donors and copied to the compute device beside the forwards.

May import: _errors, _hardware, machine.
"""
