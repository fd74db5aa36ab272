"""The homes of all tensors of a placed model: notices what the host changed, and repairs what may be repaired.

The host may edit tensors (the copies are fetched again), replace them by others on the same device (these move in) or
load a state dict. What it must not do is move them: then nothing would say on which device a forward runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from device_placement._errors import HandleInvalidatedError
from device_placement.engine._replacement import Allocate, rehouse
from device_placement.engine._streamed_unit import StreamedUnit
from device_placement.tensors._inventory import Owner
from device_placement.tensors._stored import Kept


class Homes:
    """Watches over resident and streamed tensors.

    Args:
        units: units with streamed tensors.
        residents: tensors on the compute device.
        synchronize: waits for the copies that may be reading buffers that go.
        allocate: gives memory to what replaces a streamed tensor.
        claim: marks the memory of tensors that moved in as this placement's.

    Attributes:
        reloaded: `load_state_dict` ran on the model: tensors that are elsewhere now are to be brought home.
    """

    def __init__(
        self,
        units: Sequence[StreamedUnit],
        residents: Sequence[Kept],
        synchronize: Callable[[], None],
        allocate: Allocate,
        claim: Callable[[Sequence[Kept]], None],
    ) -> None:
        self.reloaded = False
        self.synchronize = synchronize
        self._allocate = allocate
        self._claim = claim
        self._units = units
        self._residents = residents
        self._sentinels: list[tuple[Owner, str, Tensor, int]] = []
        self._packed_sentinels: list[Kept] = []
        self._post_sentinels()

    def _post_sentinels(self) -> None:
        """Choose one resident tensor of each module: it shows a `.to()` as well as all of them would, and sooner."""
        by_owner = {id(kept.entries[0][0]): kept for kept in self._residents if kept.size_bytes}
        self._packed_sentinels = [kept for kept in by_owner.values() if kept.packed]
        self._sentinels = [
            (*kept.entries[0], kept.entries[0][2].data_ptr()) for kept in by_owner.values() if not kept.packed
        ]

    def check_residents(self) -> None:
        """Let replaced resident tensors move in.

        Raises:
            HandleInvalidatedError: some were moved.
        """
        for owner, key, tensor, pointer in self._sentinels:
            if owner.get(key) is not tensor or tensor.data_ptr() != pointer:
                break
        else:
            if all(kept.is_home() for kept in self._packed_sentinels):
                return
        self._bring_residents_home(_adoptable(self._residents))
        self._post_sentinels()

    def settle(self, unit: StreamedUnit) -> None:
        """Let what the host put in place of a unit's tensors move in, and accept what it edited.

        Raises:
            HandleInvalidatedError: it moved or deleted something.
            DevicesFullError: there is no room for what replaced a streamed tensor.
        """
        self._rehouse(unit, _adoptable(unit.tensors))

    def restore(self) -> None:
        """Bring every tensor home from wherever it is.

        Raises:
            HandleInvalidatedError: a tensor is gone or has another shape or dtype.
            DevicesFullError: there is no room for what replaced a streamed tensor.
        """
        self._bring_residents_home([kept for kept in self._residents if not kept.is_home()])
        for unit in self._units:
            self._rehouse(unit, [kept for kept in unit.tensors if not kept.is_home()])
        self._post_sentinels()
        self.reloaded = False

    def _bring_residents_home(self, strays: Sequence[Kept]) -> None:
        if strays:
            with torch.inference_mode(False), torch.no_grad():
                for kept in strays:
                    kept.bring_home()
        for kept in self._residents:
            kept.note()
        self._claim(strays)

    def _rehouse(self, unit: StreamedUnit, strays: Sequence[Kept]) -> None:
        if strays:
            # The old buffers may go, and pages that are unpinned while a copy reads them take the process down.
            self.synchronize()
            with torch.inference_mode(False), torch.no_grad():
                rehouse(unit, strays, self._allocate)
        for kept in unit.tensors:
            kept.note()
        unit.note()
        self._claim(strays)


def _adoptable(tensors: Sequence[Kept]) -> list[Kept]:
    """Those that were replaced by something that can move in.

    Raises:
        HandleInvalidatedError: some were moved or deleted.
    """
    strays = [kept for kept in tensors if not kept.is_home()]
    lost = [kept.name for kept in strays if not kept.adoptable()]
    if lost:
        raise HandleInvalidatedError(lost, "moved to another device or memory")
    return strays
