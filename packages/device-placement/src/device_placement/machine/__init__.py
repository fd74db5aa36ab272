"""What this machine has: devices, free memory, links, drivers; and the plain calls that allocate and copy.

May import: _errors, _hardware.
"""
