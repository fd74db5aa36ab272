"""From what the user asked for to what each device holds, on this machine and for this model."""

from collections.abc import Mapping

from alloc_spec._amounts import check_size
from alloc_spec._budget import Budget
from alloc_spec._errors import AllocValueError
from alloc_spec._memory import DeviceMemory, require_device
from alloc_spec._model import AllocationSpec
from alloc_spec._parse import parse_device
from alloc_spec._quoting import shortened
from alloc_spec._remedy import find_remedy
from alloc_spec._resolve_errors import ComputeDeviceError, NoSpaceError
from alloc_spec._settle import settle


def resolve(
    spec: AllocationSpec,
    *,
    model_bytes: int,
    devices: Mapping[str, DeviceMemory],
    compute_device: str | None = None,
) -> Budget:
    """Resolve a specification to whole bytes that sum to the model.

    No device is given more than its room, which is its free memory less its reserve. The rules of each dialect are in
    docs/allocation-grammar.md.

    Args:
        spec: what the user asked for.
        model_bytes: size of the model in bytes, at least 1.
        devices: memory of every device there is, by name.
        compute_device: where the model computes; may repeat, not contradict, the one inside the specification.

    Returns:
        The budget, with the devices in the user's order and a device that takes the rest unasked at the end.

    Raises:
        UnknownDeviceError: the specification names a device that is not in `devices`.
        ComputeDeviceError: the specification and the argument name different compute devices.
        ExceedsModelError: controls are to move more than the model.
        NoRoomError: a device is to hold more than its room.
        NoHomeError: a part of the model is put nowhere.
        AllocValueError: `model_bytes` is no size, or a device is given twice.
        AllocSyntaxError: the name of a device cannot be read.

    >>> from alloc_spec import DeviceMemory, parse
    >>> gib = 2**30
    >>> card, host = DeviceMemory(total=24 * gib, free=23 * gib), DeviceMemory(total=64 * gib, free=60 * gib)
    >>> machine = {"cuda:0": card, "cpu": host}
    >>> resolve(parse("cuda:0,2.5gb;cpu,*"), model_bytes=10 * gib, devices=machine).as_dict()
    {'cuda:0': 2684354560, 'cpu': 8053063680}
    """
    check_size("model_bytes", model_bytes)
    if model_bytes == 0:
        raise AllocValueError("model_bytes", model_bytes, "an empty model needs no allocation; pass its size in bytes")
    machine = _canonical(devices)
    compute = _compute_device(spec, compute_device)
    reason = f'named in "{shortened(str(spec))}"'
    for name in spec.devices:
        require_device(name, machine, reason)
    if compute is not None:
        require_device(compute, machine, "named as the compute device")
    try:
        return settle(spec, model_bytes, machine, compute)
    except NoSpaceError as found:
        error = found
    remedy = find_remedy(
        spec, error, model_bytes, machine, compute, lambda changed: settle(changed, model_bytes, machine, compute)
    )
    raise error.with_suggestion(remedy)


def _canonical(devices: Mapping[str, DeviceMemory]) -> dict[str, DeviceMemory]:
    machine: dict[str, DeviceMemory] = {}
    for text, memory in devices.items():
        name = parse_device(text)
        if name in machine:
            raise AllocValueError("devices", text, f"{name} is given twice; pass each device once")
        machine[name] = memory
    return machine


def _compute_device(spec: AllocationSpec, given: str | None) -> str | None:
    if given is None:
        return spec.compute_device
    compute = parse_device(given)
    if spec.compute_device not in (None, compute):
        raise ComputeDeviceError(str(spec.compute_device), compute)
    return compute
