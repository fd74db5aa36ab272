"""The result: how many bytes of the model each device holds, in order along the model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from alloc_spec._amounts import check_size
from alloc_spec._device_names import check_device
from alloc_spec._errors import AllocValueError
from alloc_spec._human import human_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Integer bytes of a model on each device.

    `resolve` makes one from a specification; planners and tests may make one by hand.

    Attributes:
        order: the devices in order along the model, those with 0 bytes included.
        amounts: bytes on each device of `order`.
        compute_device: where the model computes, or None where nobody said.
        warnings: what the user should know though it works.
        auto_devices: devices whose amount was `auto`, filled conservatively; a planner may shrink or grow them.
        rest_device: the device that takes what the others leave, asked (`*`) or unasked; None where every amount was
            asked for. A planner that cuts the model between tensors puts the odd bytes there.
        run_devices: devices of `order` that run the blocks they hold; never the compute device or the cpu.

    Raises:
        AllocValueError: a device twice or without an amount, a negative amount, a name that is not canonical, a device
            that cannot run.

    >>> budget = Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": 3 * 2**30, "cpu": 2**30}, compute_device="cuda:0")
    >>> budget.model_bytes, budget.bytes_for("cuda:1")
    (4294967296, 0)
    """

    order: tuple[str, ...]
    amounts: Mapping[str, int] = field(hash=False)
    compute_device: str | None = None
    warnings: tuple[str, ...] = ()
    auto_devices: frozenset[str] = frozenset()
    rest_device: str | None = None
    run_devices: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", tuple(self.order))
        object.__setattr__(
            self, "amounts", MappingProxyType({name: self.amounts[name] for name in self._checked_order()})
        )
        object.__setattr__(self, "warnings", tuple(self.warnings))
        object.__setattr__(self, "auto_devices", frozenset(self.auto_devices))
        object.__setattr__(self, "run_devices", frozenset(self.run_devices))
        for name, size_bytes in self.amounts.items():
            check_size(f"amounts[{name!r}]", size_bytes)
        if self.compute_device is not None:
            check_device("compute_device", self.compute_device)
        if not self.auto_devices <= set(self.order):
            raise AllocValueError("auto_devices", sorted(self.auto_devices), "name only devices of `order`")
        if self.rest_device is not None and self.rest_device not in self.order:
            raise AllocValueError("rest_device", self.rest_device, "name a device of `order`")
        if not self.run_devices <= set(self.order) - {"cpu", self.compute_device}:
            raise AllocValueError(
                "run_devices",
                sorted(self.run_devices),
                "name only devices of `order`, neither the cpu nor the compute device",
            )

    @property
    def model_bytes(self) -> int:
        """Size of the model, which is the sum of the amounts."""
        return sum(self.amounts.values())

    def bytes_for(self, device: str) -> int:
        """Bytes on a device; 0 for a device that the budget does not name."""
        return self.amounts.get(device, 0)

    def as_dict(self) -> dict[str, int]:
        """Device and bytes, in order along the model."""
        return dict(self.amounts)

    def explain(self) -> str:
        """Table of the amounts in order along the model, followed by the warnings.

        >>> print(Budget(order=("cuda:0", "cpu"), amounts={"cuda:0": 3 * 2**30, "cpu": 2**30}).explain())
        model of 4 GiB (4294967296 bytes), in order along the model:
          cuda:0  3 GiB   75.0 %  3221225472 bytes
          cpu     1 GiB   25.0 %  1073741824 bytes
        """
        total = self.model_bytes
        lines = [f"model of {human_size(total)} ({total} bytes), in order along the model:"]
        sizes = {name: human_size(size_bytes) for name, size_bytes in self.amounts.items()}
        columns = (self.order, sizes.values(), self.amounts.values())
        name_width, size_width, bytes_width = (max(map(_width, column), default=0) for column in columns)
        for name, size_bytes in self.amounts.items():
            percent = 100 * size_bytes / total if total else 0.0
            lines.append(
                f"  {name:<{name_width}}  {sizes[name]:>{size_width}}  {percent:5.1f} %"
                f"  {size_bytes:>{bytes_width}} bytes{self._note(name)}"
            )
        lines.extend(f"warning: {warning}" for warning in self.warnings)
        return "\n".join(lines)

    def _note(self, name: str) -> str:
        notes = ["computes"] * (name == self.compute_device) + ["auto"] * (name in self.auto_devices)
        notes += ["runs its blocks"] * (name in self.run_devices)
        return f"  ({', '.join(notes)})" if notes else ""

    def _checked_order(self) -> tuple[str, ...]:
        for name in self.order:
            check_device("order", name)
        if len(set(self.order)) != len(self.order):
            raise AllocValueError("order", self.order, "name each device once")
        if set(self.order) != set(self.amounts):
            reason = f"give an amount for each of {', '.join(self.order) or 'no devices'}, and for no other"
            raise AllocValueError("amounts", dict(self.amounts), reason)
        return self.order

    def __reduce__(self) -> tuple[Callable[..., "Budget"], tuple[object, ...]]:
        return _rebuild, (
            self.order, self.as_dict(), self.compute_device, self.warnings, self.auto_devices, self.rest_device,
            self.run_devices
        )  # fmt: skip


def _width(cell: object) -> int:
    return len(str(cell))


def _rebuild(
    order: tuple[str, ...],
    amounts: dict[str, int],
    compute_device: str | None,
    warnings: tuple[str, ...],
    auto_devices: frozenset[str],
    rest_device: str | None,
    run_devices: frozenset[str],
) -> Budget:
    return Budget(
        order=order,
        amounts=amounts,
        compute_device=compute_device,
        warnings=warnings,
        auto_devices=auto_devices,
        rest_device=rest_device,
        run_devices=run_devices,
    )
