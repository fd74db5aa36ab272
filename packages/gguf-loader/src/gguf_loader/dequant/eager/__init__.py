"""One kernel for each block type in plain torch operations, on any device.

May import: nothing.
"""
