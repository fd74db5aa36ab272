"""Tables and pictures of a plan and of its prediction, for the log and for docs.

May import: _errors, _estimate, _hardware, _plan, planning.
"""
