"""What more ranks would gain: bytes, seconds, and the choice of a split.

May import: plan, ranks, running.
"""
