"""The picture of a plan: what it shows can be counted in its pixels."""

import pytest
import torch

from comfy_nodes.nodes.running._picture import COLOURS, HEIGHT, WIDTH, _subtitle, columns, picture
from comfy_nodes.nodes.running._tools import exact_allocation
from device_placement import Device, Hardware, Link, PlacementPlan, TensorHome, UnitPlacement, predict

pytest.importorskip("PIL")


def plan_of(*shares: int, units: int = 12) -> PlacementPlan:
    """Units that keep so many MB each on the compute device and on every donor."""
    names = ["cuda:0", "cuda:1", "cpu"][: len(shares)]
    placed = tuple(
        UnitPlacement(
            path=f"blocks.{index}",
            class_name="Block",
            kind="block",
            homes=tuple(
                TensorHome(name=f"{index}.{number}", size_bytes=share << 20, device=name)
                for number, (name, share) in enumerate(zip(names, shares, strict=True))
                if share
            ),
        )
        for index in range(units)
    )
    return PlacementPlan(compute="cuda:0", donors=tuple(names[1:]), policy="stripe", slots=2, units=placed)


def pixels(image: torch.Tensor, colour: str) -> int:
    wanted = torch.tensor([int(colour[start : start + 2], 16) for start in (1, 3, 5)])
    return int(((image[0] * 255).round().to(torch.int64) == wanted).all(dim=-1).sum())


def test_it_is_an_image_of_the_host() -> None:
    image = picture(plan_of(3, 1))
    assert image.shape == (1, HEIGHT, WIDTH, 3)
    assert image.dtype is torch.float32
    assert 0.0 <= float(image.min()) < 0.5 < float(image.max()) == 1.0


def test_colours_cover_areas_in_proportion_to_bytes() -> None:
    image = picture(plan_of(3, 2, 1))
    legend = 15 * 15
    areas = [pixels(image, colour) - legend for colour in COLOURS[:3]]
    assert areas[0] / areas[2] == pytest.approx(3, rel=0.1)
    assert areas[1] / areas[2] == pytest.approx(2, rel=0.1)


def test_a_device_without_bytes_has_a_legend_and_no_bar() -> None:
    image = picture(plan_of(4, 0))
    assert pixels(image, COLOURS[1]) == 15 * 15


def test_the_prediction_changes_the_words_and_not_the_bars() -> None:
    plan = plan_of(3, 1)
    hardware = Hardware(
        compute="cuda:0",
        devices=tuple(Device(name=name, total_bytes=1 << 34, free_bytes=1 << 34) for name in ("cuda:0", "cuda:1")),
        links=(Link(source="cuda:1", target="cuda:0", gb_per_second=10),),
    )
    with_words = picture(plan, predict(plan, hardware, compute_seconds=0.5))
    without = picture(plan)
    assert not torch.equal(with_words[:, :80], without[:, :80])
    assert torch.equal(with_words[:, 80:], without[:, 80:])


@pytest.mark.parametrize(
    ("shares", "seconds", "words"),
    [
        ((4, 0), None, "everything resident on cuda:0"),
        ((3, 1), None, "12 MiB sent to cuda:0 a step, 0.0015 s on the busiest link"),
        ((3, 1), 0.5, "12 MiB sent to cuda:0 a step; predicted 1.00 x all resident, bound by the compute"),
    ],
)
def test_the_words_say_what_is_known(shares: tuple[int, ...], seconds: float | None, words: str) -> None:
    plan = plan_of(*shares)
    devices = tuple(Device(name=name, total_bytes=1 << 34, free_bytes=1 << 34) for name in ("cuda:0", "cuda:1"))
    links = (Link(source="cuda:1", target="cuda:0", gb_per_second=10),)
    hardware = Hardware(compute="cuda:0", devices=devices, links=links)
    assert _subtitle(plan, predict(plan, hardware, compute_seconds=seconds)) == words
    assert words.startswith(_subtitle(plan, None))


def test_a_model_of_any_length_fits() -> None:
    plan = plan_of(1, 1, units=1000)
    stretches = columns(plan.units)
    assert len(stretches) <= 224
    assert sum(len(stretch) for stretch in stretches) == 1000
    assert pixels(picture(plan), COLOURS[0]) > 1000


def test_an_empty_plan_has_no_bars() -> None:
    empty = PlacementPlan(compute="cuda:0", donors=("cpu",), policy="stripe", slots=2, units=())
    assert pixels(picture(empty), COLOURS[0]) == 15 * 15


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        ((3, 2, 1), f"cuda:0,{36 << 20}b;cuda:1,{24 << 20}b;cpu,*"),
        ((3, 0, 1), f"cuda:0,{36 << 20}b;cpu,*"),
        ((3, 0), "cuda:0,*"),
        ((0, 2), "cuda:1,*"),
    ],
)
def test_a_plan_can_be_said_in_exact_bytes(shares: tuple[int, ...], text: str) -> None:
    assert exact_allocation(plan_of(*shares)) == text
