"""The plans that are known, each under twenty lines of data: for ComfyUI's classes and for those of diffusers."""
