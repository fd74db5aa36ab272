"""What can go wrong with a cluster."""

from __future__ import annotations

from ray_parallel.workers._errors import WorkersError


class ClusterError(WorkersError):
    """A Ray cluster cannot be started, reached or used."""


class PortTakenError(ClusterError):
    """The address at which the workers were to meet is in use.

    Attributes:
        address: ``host:port``.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(
            f"the workers cannot meet at {address}: another process listens there; name a free port, or port 0 to let "
            "the operating system choose one"
        )
