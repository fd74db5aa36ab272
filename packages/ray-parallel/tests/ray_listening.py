"""What processes listen on and leave behind, by the kernel's own tables (Linux)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

_LISTENING = "0A"
LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def listening_addresses(pids: Iterable[int]) -> dict[int, set[str]]:
    """Addresses that each process accepts connections on."""
    addresses = {inode: address for name in ("tcp", "tcp6") for inode, address in _table(Path("/proc/net") / name)}
    return {pid: {addresses[inode] for inode in _sockets(pid) if inode in addresses} for pid in pids}


def _table(path: Path) -> Iterable[tuple[str, str]]:
    for line in path.read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == _LISTENING:
            yield fields[9], _address(fields[1].partition(":")[0])


def _address(hexadecimal: str) -> str:
    words = [bytes.fromhex(hexadecimal[start : start + 8])[::-1] for start in range(0, len(hexadecimal), 8)]
    if len(words) == 1:
        return ".".join(str(byte) for byte in words[0])
    raw = b"".join(words)
    if raw[:12] == bytes(10) + b"\xff\xff":
        return "::ffff:" + ".".join(str(byte) for byte in raw[12:])
    return "::1" if raw == bytes(15) + b"\x01" else raw.hex()


def _sockets(pid: int) -> Iterable[str]:
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target.removeprefix("socket:[").removesuffix("]")
