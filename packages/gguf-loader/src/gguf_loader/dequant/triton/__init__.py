"""The same kernels in Triton, imported when blocks on such a device are first dequantised.

May import: eager.
"""
