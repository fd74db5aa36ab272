"""Torchspan's face: the torchspan command and the ComfyUI node pack."""
