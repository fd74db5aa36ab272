"""What a file is that was taken for safetensors, from its first bytes."""

from __future__ import annotations

HEAD_BYTES = 64
"""How much of a file `foreign_format` looks at."""


def foreign_format(head: bytes) -> tuple[str, str] | None:
    """What a file is whose first bytes are no safetensors, and a remedy; None where nobody knows.

    >>> foreign_format(b"version https://git-lfs.github.com/spec/v1")
    ('a Git LFS pointer', 'fetch the file that it points to with git lfs pull')
    """
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer", "fetch the file that it points to with git lfs pull"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "a web page", "download the file itself, not the page that shows it"
    if head.startswith(b"GGUF"):
        return "a GGUF file", "choose it where GGUF files are loaded"
    if head.startswith((b"PK\3\4", b"\x80\2", b"\x80\4")):
        return "a PyTorch or zip file", "convert it to safetensors, or choose the safetensors file of the model"
    if text.startswith((b"{", b"[")):
        return "a JSON text", "choose the file with the weights"
    if len(head) == HEAD_BYTES and not any(head):
        return "a file that starts with zeros, as an unfinished download does", "download it again"
    return None
