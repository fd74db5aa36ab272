"""place(): from a model and a plan to a model that runs with its bytes where the plan wants them."""

from __future__ import annotations

import logging

import torch
from torch import nn

from device_placement._errors import BudgetTooSmallError, DeviceUnavailableError, HandleStateError, PlanMismatchError
from device_placement._plan import PlacementPlan, aligned_bytes
from device_placement.copying._accelerator import AcceleratorBackend
from device_placement.copying._backend import Backend
from device_placement.copying._same_device import SameDeviceBackend
from device_placement.engine._claims import is_claimed
from device_placement.engine._engine import Engine
from device_placement.engine._handle import PlacedModel
from device_placement.engine._hooks import install, is_placed, remove_copied_hooks
from device_placement.engine._moving import Mover, Progress
from device_placement.engine._slots import Ring
from device_placement.tensors._inventory import Assignment, Inventory, assign, take_inventory

_log = logging.getLogger(__name__)


def place(
    model: nn.Module, plan: PlacementPlan, *, backend: Backend | None = None, progress: Progress | None = None
) -> PlacedModel:
    """Move every tensor of a model to its home and stream the rest in when it runs.

    Afterwards `model` is called as before, with inputs on the compute device. What lives there stays there; a unit with
    tensors elsewhere has them copied into a slot just in time for its forward. Parameters stay the objects they were
    wherever torch allows it, and live in their homes: state dicts, in-place edits and `load_state_dict` work on them.
    For inference: a gradient of a streamed weight does not reach its parameter.

    Unit by unit, so that no more than one unit exists twice. If it fails, every tensor is back where it was.

    Args:
        model: with its weights loaded; compile it after placing it, not before.
        plan: homes of its tensors, from `plan()` or by hand.
        backend: the kind of machine; by default what `plan.compute` says: `SameDeviceBackend` for ``"cpu"``, else
            `AcceleratorBackend`.
        progress: called after each unit with the bytes that are in their homes and the bytes of the model.

    Returns:
        the handle: statistics, `refresh`, `pause`, `resize`, `remove`.

    Raises:
        PlanMismatchError: the plan is for another model, or a streamed tensor is tied to something outside its unit.
        HandleStateError: the model, a part of it, or another model that it shares a tensor with is placed already.
        DeviceUnavailableError: a device of the plan is not there.
        BudgetTooSmallError: the compute device has no room for what is resident and the slots.
        DevicesFullError: no donor, and not the host either, has room for a streamed share.

    Example:
        >>> import torch
        >>> from device_placement import PlacementPlan, TensorHome, UnitPlacement
        >>> model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        >>> homes = [TensorHome(name=f"{i}.weight", size_bytes=64, device="donor:0") for i in (0, 1)]
        >>> units = [
        ...     UnitPlacement(path=str(i), class_name="Linear", kind="block", homes=(homes[i],)) for i in (0, 1)
        ... ]
        >>> plan = PlacementPlan(compute="cpu", donors=("donor:0",), policy="stripe", slots=2, units=tuple(units))
        >>> x = torch.ones(1, 4)
        >>> before = model(x)
        >>> with place(model, plan) as handle:
        ...     print(torch.equal(model(x), before), handle.stats().calls, handle.stats().held_bytes)
        True 2 {'cpu': 0, 'donor:0': 1024}
    """
    if is_placed(model):
        raise HandleStateError("the model, or a part of it, is placed already; call remove() on its PlacedModel first")
    backend = backend or _default_backend(plan)
    inventory = take_inventory(model)
    _check_unclaimed(inventory)
    assignment = assign(model, inventory, plan)
    _check_nesting(plan)
    _check_devices(plan, backend)
    _check_room(assignment, plan, backend)
    # Donors that are not used yet may have to stand in for one that is full; then it is too late to test their links.
    backend.open(plan.compute, dict.fromkeys(plan.donors, plan.slot_bytes)).close()
    for module in model.modules():
        remove_copied_hooks(module)
    mover = Mover(plan, backend, progress)
    with torch.inference_mode(False), torch.no_grad():
        try:
            mover.move(assignment)
            return _start(model, mover, backend)
        except BaseException:
            mover.roll_back()
            raise


def _start(model: nn.Module, mover: Mover, backend: Backend) -> PlacedModel:
    plan = mover.actual_plan()
    streamer = backend.open(plan.compute, _largest_shares(plan))
    units = mover.units

    def make_ring(slots: int) -> Ring:
        if streamer.shares_memory:
            return Ring.of_shared_memory(units, streamer)
        return Ring.allocated(slots, plan.slot_bytes, plan.compute, backend, streamer)

    try:
        engine = Engine(
            units=tuple(units),
            residents=mover.residents,
            streamer=streamer,
            make_ring=make_ring,
            slots=plan.slots,
            allocate=backend.allocate,
        )
    except BaseException:
        streamer.close()
        raise
    handles = install(model, engine) if units else []
    _log.info("placed %s: %d of %d units are streamed", type(model).__name__, len(units), len(plan.units))
    return PlacedModel(model=model, plan=plan, engine=engine, handles=handles, backend=backend)


def _check_unclaimed(inventory: Inventory) -> None:
    """Refuse a model whose tensors another placed model needs where they are."""
    shared = [held.name for held in inventory.held if any(is_claimed(part) for part in held.parts)]
    if shared:
        more = f" and {len(shared) - 3} more" if len(shared) > 3 else ""
        raise HandleStateError(
            f"{', '.join(map(repr, shared[:3]))}{more} of the model belong to another model that is placed; call "
            "remove() on its PlacedModel first, or give this model separate copies"
        )


def _default_backend(plan: PlacementPlan) -> Backend:
    if plan.compute != "cpu":
        return AcceleratorBackend()
    for donor in plan.donors:
        if donor.partition(":")[0] in ("cuda", "xpu", "mps", "npu"):
            raise DeviceUnavailableError(
                donor, "forwards on the CPU cannot be streamed from an accelerator", "plan an accelerator as compute"
            )
    return SameDeviceBackend()


def _check_devices(plan: PlacementPlan, backend: Backend) -> None:
    for name in (plan.compute, *plan.donors):
        backend.device(name)


def _check_nesting(plan: PlacementPlan) -> None:
    """Units inside units hold their slots at the same time."""
    streamed = {unit.path for unit in plan.units if unit.streamed(plan.compute)}
    for path in streamed:
        around = [other for other in _around(path) if other in streamed]
        if len(around) >= plan.slots:
            raise PlanMismatchError(
                f"{plan.slots} slots are too few for streamed units inside streamed units",
                [*around, path],
                f"plan {len(around) + 1} slots, or keep the inner units resident",
            )


def _around(path: str) -> list[str]:
    """Paths of the modules that contain the one at `path`, the model's own (``""``) first.

    >>> _around("blocks.1.mlp")
    ['', 'blocks', 'blocks.1']
    """
    names = path.split(".") if path else []
    return [".".join(names[:depth]) for depth in range(len(names))]


def _check_room(assignment: Assignment, plan: PlacementPlan, backend: Backend) -> None:
    """Refuse a plan for which the compute device is too small before anything is moved."""
    free_bytes = backend.free_bytes(plan.compute)
    if free_bytes is None:
        return
    device = backend.device(plan.compute)
    needed = plan.slots * plan.slot_bytes
    for _, tensors in assignment.units:
        for tensor in tensors:
            for part in tensor.held.parts:
                size_bytes = aligned_bytes(part.numel() * part.element_size())
                home = backend.device(tensor.home.device)
                if part.device == device and home != device:
                    free_bytes += size_bytes
                elif part.device != device and home == device:
                    needed += size_bytes
    if needed > free_bytes:
        raise BudgetTooSmallError(
            device=plan.compute,
            what="the resident tensors that are not there yet and the slots",
            needed_bytes=needed,
            available_bytes=free_bytes,
            remedy="plan with a smaller budget there, or free memory of other programs; nothing was moved",
        )


def _largest_shares(plan: PlacementPlan) -> dict[str, int]:
    largest: dict[str, int] = {}
    for unit in plan.units:
        for donor, homes in unit.streamed(plan.compute).items():
            size_bytes = sum(aligned_bytes(home.size_bytes) for home in homes)
            largest[donor] = max(largest.get(donor, 0), size_bytes)
    return largest
