"""What is packed by choice: nothing unless asked, as much as makes a forward faster, with every assumption named."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_packed import bf16_model
from placement_trees import MIB, flux_seconds, flux_tree, machine, trees

from alloc_spec import NoSpaceError
from block_discovery import BlockTree, TensorInfo, discover
from device_placement import BudgetTooSmallError, InvalidPlanError, plan, predict
from device_placement.packed import Pack, PackedPlan, pack_model, plan_packed

SPEC = "cuda:0,auto;cpu,*"


def bf16(tree: BlockTree) -> BlockTree:
    """The same tree with bf16 matrices of as many weights as its tensors have bytes."""

    def matrix(tensor: TensorInfo) -> TensorInfo:
        return TensorInfo(
            name=tensor.name, size_bytes=2 * tensor.size_bytes, shape=(tensor.size_bytes, 1), dtype="bfloat16"
        )

    return replace(tree, units=tuple(replace(unit, tensors=tuple(map(matrix, unit.tensors))) for unit in tree.units))


FLUX = bf16(flux_tree())


def choice(pack: Pack, *, link: float = 6, seconds: float | None = 0.8, gb: float = 9.0, **how: float) -> PackedPlan:
    hardware = machine(int(gb * 1e9), gb_per_second=link)
    return plan_packed(FLUX, SPEC, hardware, pack=pack, compute_seconds=seconds, **how)  # type: ignore[arg-type]


def forward(made: PackedPlan) -> float:
    assert made.estimate.seconds is not None
    return made.estimate.seconds


def test_never_is_the_plan_without_packing() -> None:
    made = choice("never")
    hardware = machine(int(9e9), gb_per_second=6)
    assert made.plan == plan(FLUX, SPEC, hardware)
    assert forward(made) == pytest.approx(predict(made.plan, hardware, compute_seconds=0.8).seconds)
    assert (made.units, made.dense_bytes, made.packed_bytes, made.decode_seconds) == ((), 0, 0, 0)
    assert made.explanation == ("nothing is packed, as asked",)


def test_always_packs_every_unit_and_charges_decoding() -> None:
    made = choice("always", packed_ratio=0.7, decode_gb_per_second=600)
    assert made.units == tuple(unit.path for unit in FLUX.units)
    assert made.dense_bytes == FLUX.size_bytes
    assert made.plan.size_bytes == made.packed_bytes == pytest.approx(0.7 * FLUX.size_bytes, rel=1e-6)
    assert made.decode_seconds == pytest.approx(FLUX.size_bytes / 600e9)
    assert made.estimate.compute_seconds == pytest.approx(0.8 + made.decode_seconds)


def test_auto_packs_where_the_link_limits_and_nothing_where_it_does_not() -> None:
    slow = choice("auto", link=6, packed_ratio=0.701)
    assert len(slow.units) == len(FLUX.units)
    assert forward(slow) < 0.55 * forward(choice("never", link=6))
    between = choice("auto", link=12)
    assert 0 < len(between.units) < len(FLUX.units)
    assert forward(between) < min(forward(choice("never", link=12)), forward(choice("always", link=12)))
    fast = choice("auto", link=55)
    assert fast.units == ()
    assert fast.explanation == ("nothing is packed: by prediction no number of packed units makes a forward faster",)


def test_a_slow_decoder_is_not_used() -> None:
    assert choice("auto", link=6, decode_gb_per_second=5).units == ()


@pytest.mark.parametrize("seconds", [0.3, 2.0])
@pytest.mark.parametrize("link", [4, 9, 30])
def test_auto_is_never_slower_than_nothing_or_everything(link: float, seconds: float) -> None:
    auto = forward(choice("auto", link=link, seconds=seconds))
    for other in ("never", "always"):
        assert auto <= 1.005 * forward(choice(other, link=link, seconds=seconds))


def test_seconds_of_each_unit_are_used() -> None:
    seconds = flux_seconds(0.8)
    hardware = machine(int(9e9), gb_per_second=6)
    made = plan_packed(FLUX, SPEC, hardware, pack="auto", unit_seconds=seconds)
    assert made.units
    assert made.estimate.compute_seconds == pytest.approx(0.8 + made.decode_seconds)


def test_the_explanation_names_the_gain_the_cost_and_what_is_assumed() -> None:
    found = "\n".join(choice("auto").explanation)
    assert "packed: 57 of 57 units, 22 GiB of bf16 in 15.7 GiB, without loss" in found
    assert "decoding takes 78.9 ms of each forward, and one decoded tensor 126 MiB of cuda:0" in found
    assert "with nothing packed it takes 2.54 s" in found
    assert "ratio 0.71 (assumed), decoding at 300 GB/s (assumed, not measured on this device)" in found
    given = "\n".join(choice("auto", packed_ratio=0.7, decode_gb_per_second=400).explanation)
    assert "ratio 0.7 (given), decoding at 400 GB/s (given)" in given


def test_only_a_packed_model_may_fit() -> None:
    hardware = machine(int(4e9), gb_per_second=12, donor_bytes=14 << 30)
    with pytest.raises((BudgetTooSmallError, NoSpaceError)):
        plan_packed(FLUX, SPEC, hardware, pack="never")
    made = plan_packed(FLUX, SPEC, hardware, pack="auto", compute_seconds=0.8)
    assert made.units
    assert "with nothing packed it does not fit" in made.explanation[2]
    with pytest.raises((BudgetTooSmallError, NoSpaceError)):
        plan_packed(FLUX, SPEC, machine(int(1e9), donor_bytes=4 << 30), pack="auto", compute_seconds=0.8)


def test_room_for_one_decoded_tensor_is_kept() -> None:
    made = choice("always")
    free = int(9e9) - made.plan.compute_peak_bytes
    assert free >= max(tensor.size_bytes for unit in FLUX.units for tensor in unit.tensors)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"pack": "maybe"}, "unknown pack 'maybe'; choose one of never, auto, always"),
        ({"pack": "auto"}, "needs the seconds of a forward"),
        (
            {"pack": "always", "packed_ratio": float("nan")},
            "packed_ratio is nan; give a finite number",
        ),
        ({"pack": "always", "packed_ratio": 2.0}, "packed_ratio is 2.0"),
        ({"pack": "always", "packed_ratio": True}, "packed_ratio is True"),
        ({"pack": "always", "decode_gb_per_second": 0.0}, "decode_gb_per_second is 0.0; give a finite number above 0"),
        ({"pack": "always", "compute_seconds": -1.0}, "compute_seconds is -1.0"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, object], reason: str) -> None:
    with pytest.raises(InvalidPlanError, match=reason):
        plan_packed(FLUX, SPEC, machine(int(9e9)), **arguments)  # type: ignore[arg-type]


def test_a_model_without_bf16_matrices_says_so() -> None:
    made = plan_packed(flux_tree(), SPEC, machine(int(9e9)), pack="always")
    assert made.explanation == ("nothing is packed: no unit has bf16 matrices of 16,384 weights or more",)


@given(
    tree=trees().filter(lambda tree: tree.size_bytes),
    pack=st.sampled_from(["never", "auto", "always"]),
    link=st.sampled_from([0.001, 1, 50]),
)
@settings(max_examples=40, deadline=None)
def test_the_bytes_add_up_whatever_is_packed(tree: BlockTree, pack: Pack, link: float) -> None:
    dense = bf16(tree)
    hardware = machine(64 * MIB, gb_per_second=link)
    made = plan_packed(dense, SPEC, hardware, pack=pack, compute_seconds=0.01)
    assert made.plan.size_bytes == dense.size_bytes - made.dense_bytes + made.packed_bytes
    assert set(made.units) <= {unit.path for unit in dense.units if unit.kind != "rest" and not unit.is_embedding}
    assert len(set(made.units)) == len(made.units)


def test_what_was_chosen_can_be_packed_and_the_estimate_is_close() -> None:
    model = bf16_model()
    made = plan_packed(discover(model), "cuda:0,50%;cpu,*", machine(64 * MIB), pack="always", packed_ratio=0.7)
    report = pack_model(model, units=made.units)
    assert report.dense_bytes == made.dense_bytes
    assert report.packed_bytes == pytest.approx(made.packed_bytes, rel=0.02)
    again = plan_packed(discover(model), "cuda:0,50%;cpu,*", machine(64 * MIB), pack="always")
    assert again.units == ()


def test_choosing_needs_no_torch() -> None:
    script = "import sys; from device_placement.packed import plan_packed; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"
