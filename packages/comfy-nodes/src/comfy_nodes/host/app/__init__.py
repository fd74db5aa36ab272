"""The running ComfyUI: its server, folders, devices, memory, and what differs between its versions.

May import: _errors.
"""
