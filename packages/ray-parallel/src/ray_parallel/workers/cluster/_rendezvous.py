"""Where the ranks of one generation meet: at a port that is held from the moment it was found free."""

from __future__ import annotations

import errno
import socket
from datetime import timedelta

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # exported, but not in __all__

from ray_parallel.workers._errors import InvalidRequestError
from ray_parallel.workers.cluster._errors import PortTakenError


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``"host:port"``.

    Raises:
        InvalidRequestError: it is not one.

    >>> split_address("127.0.0.1:29500")
    ('127.0.0.1', 29500)
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidRequestError(f'{address!r} is no address; write "host:port"')
    return host.strip("[]"), int(port)


def open_meeting(host: str, port: int, timeout: timedelta) -> tuple[Store, int]:
    """Serve the meeting point, on this address only.

    Args:
        host: address of this machine to listen on.
        port: port; 0 lets the operating system choose one that is free.
        timeout: how long its readers wait.

    Returns:
        The store and its port.

    Raises:
        PortTakenError: somebody else listens there.
        OSError: the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(f"{host}:{port}") from error
        raise
    # The store takes the socket over, which is why nobody can take the port in between.
    found: int = listening.getsockname()[1]
    # Served without libuv, which took no socket before torch 2.8.
    store: Store = TCPStore(
        host,
        found,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
        use_libuv=False,
    )
    return store, found


def join_meeting(host: str, port: int, timeout: timedelta) -> Store:
    """Connect to the meeting point of rank 0."""
    store: Store = TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)
    return store
