"""Laws of machines that differ in one thing, and of what is said about an allocation."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from alloc_spec import (
    AllocationSpec,
    AllocValueError,
    Auto,
    Budget,
    Bytes,
    DeviceMemory,
    Entry,
    Free,
    NoSpaceError,
    Percent,
    Rest,
    explain,
    from_controls,
    parse,
    parse_wire,
    resolve,
)

GIB = 2**30
NAMES = ("cpu", "cuda:0", "cuda:1")
TEXTS = (
    "cuda:0,2gb;cpu,*",
    "cuda:0,2gb;cuda:1,25%;cpu,*",
    "cuda:0,40%;cpu,60%",
    "cuda:0,0.5;cuda:1,0.5;cpu,*",
    "cuda:0,free-1gb;cpu,*",
    "cuda:0,auto;cuda:1,auto;cpu,*",
    "cuda:0,auto;cuda:1,free",
    "cuda:1,3gb",
    "cpu,4gb;cuda:0,*",
    "#cuda:0;3;cuda:1,cpu",
)

texts = st.sampled_from(TEXTS)
models = st.integers(1, 12 * GIB)
memory = st.builds(
    lambda total, free, reserve: DeviceMemory(total=total, free=min(free, total), reserve=reserve),
    st.integers(4 * GIB, 24 * GIB),
    st.integers(4 * GIB, 24 * GIB),
    st.integers(0, 2 * GIB),
)
machines = st.fixed_dictionaries(dict.fromkeys(NAMES, memory))


def outcome(text: str, model_bytes: int, machine: Mapping[str, DeviceMemory]) -> Budget | None:
    try:
        return resolve(parse(text), model_bytes=model_bytes, devices=machine, compute_device="cuda:0")
    except NoSpaceError:
        return None


@given(texts, models, machines, st.sampled_from(NAMES), st.integers(0, 8 * GIB))
def test_more_memory_never_turns_an_answer_into_an_error(
    text: str, model_bytes: int, machine: dict[str, DeviceMemory], name: str, more: int
) -> None:
    assume(outcome(text, model_bytes, machine) is not None)
    given_more = replace(machine[name], total=machine[name].total + more, free=machine[name].free + more)
    assert outcome(text, model_bytes, machine | {name: given_more}) is not None


@given(texts, models, machines)
def test_a_device_that_is_not_named_and_not_needed_changes_nothing(
    text: str, model_bytes: int, machine: dict[str, DeviceMemory]
) -> None:
    wider = machine | {"xpu:0": DeviceMemory(total=GIB, free=GIB)}
    assert outcome(text, model_bytes, machine) == outcome(text, model_bytes, wider)


@given(texts, models, machines)
def test_resolving_twice_gives_the_same(text: str, model_bytes: int, machine: dict[str, DeviceMemory]) -> None:
    assert outcome(text, model_bytes, machine) == outcome(text, model_bytes, machine)


@given(texts, models, machines)
def test_what_was_resolved_can_be_asked_for_in_bytes(
    text: str, model_bytes: int, machine: dict[str, DeviceMemory]
) -> None:
    budget = outcome(text, model_bytes, machine)
    assume(budget is not None)
    assert budget is not None
    entries = tuple(Entry(device=name, amount=Bytes(size_bytes=budget.bytes_for(name))) for name in budget.order)
    again = resolve(AllocationSpec(entries=entries), model_bytes=model_bytes, devices=machine)
    assert again.as_dict() == budget.as_dict()
    assert again.warnings == ()
    assert parse(str(AllocationSpec(entries=entries))).entries == entries


@given(texts, models, machines)
def test_the_explanation_of_a_budget_has_a_line_for_each_device_and_adds_up(
    text: str, model_bytes: int, machine: dict[str, DeviceMemory]
) -> None:
    budget = outcome(text, model_bytes, machine)
    assume(budget is not None)
    assert budget is not None
    first, *lines = budget.explain().splitlines()
    assert f"({model_bytes} bytes)" in first
    rows = [line.split() for line in lines[: len(budget.order)]]
    assert [row[0] for row in rows] == list(budget.order)
    assert sum(int(row[row.index("%") + 1]) for row in rows) == model_bytes
    assert lines[len(budget.order) :] == [f"warning: {warning}" for warning in budget.warnings]


@given(texts)
def test_an_explanation_names_every_device_in_the_order_of_the_text(text: str) -> None:
    lines = explain(text).splitlines()
    spec = parse(text)
    numbered = [line.split() for line in lines if line.split()[0].rstrip(".").isdigit()]
    assert [words[1] for words in numbered] == list(spec.devices)
    assert [words[0] for words in numbered] == [f"{number}." for number in range(1, len(spec.devices) + 1)]


@given(
    st.sampled_from(["cuda:0", "CUDA:0", " cuda:0 "]),
    st.integers(0, 10**6).map(lambda thousandths: thousandths / 1000),
    st.lists(st.sampled_from(["cpu", "cuda:1", "xpu:3"]), min_size=1, max_size=3, unique=True),
)
def test_controls_and_their_wire_string_mean_the_same(compute: str, gigabytes: float, donors: list[str]) -> None:
    by_controls = from_controls(compute_device=compute, virtual_ram_gb=gigabytes, donor_device=donors)
    assert parse_wire(str(by_controls)) == by_controls
    assert parse_wire(f"#{compute};{gigabytes:.3f};{','.join(donors)}") == by_controls
    assert from_controls(compute_device=compute, virtual_ram_gb=gigabytes, donor_device=",".join(donors)) == by_controls


@given(texts)
def test_an_expert_text_wins_over_the_controls_behind_it(text: str) -> None:
    assume("#" not in text)
    wire = parse_wire(f"{text}#cuda:0;4;cpu")
    assert wire.entries == parse(text).entries
    assert wire.compute_device == "cuda:0"
    assert parse_wire(str(wire)) == wire


@given(memory)
def test_room_is_what_is_free_less_the_reserve_and_never_less_than_nothing(device: DeviceMemory) -> None:
    assert device.room == max(0, device.free - device.reserve)
    assert 0 <= device.room <= device.free <= device.total


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [
        ({"cuda:0": Auto(), "cpu": Rest()}, {"cuda:0": 4, "cpu": 6}),
        ({"cuda:0": Auto(), "cpu": Bytes(size_bytes=3 * GIB)}, {"cuda:0": 7, "cpu": 3}),
        ({"cuda:0": Free(), "cpu": Rest()}, {"cuda:0": 8, "cpu": 2}),
        ({"cuda:0": Free(keep_bytes=3 * GIB), "cpu": Rest()}, {"cuda:0": 5, "cpu": 5}),
    ],
)
def test_a_specification_made_by_code_resolves_like_its_text(
    amounts: dict[str, Auto | Bytes | Free | Rest], expected: dict[str, int]
) -> None:
    machine = {
        "cuda:0": DeviceMemory(total=8 * GIB, free=8 * GIB),
        "cpu": DeviceMemory(total=32 * GIB, free=32 * GIB),
    }
    spec = AllocationSpec(entries=tuple(Entry(device=name, amount=amount) for name, amount in amounts.items()))
    by_code = resolve(spec, model_bytes=10 * GIB, devices=machine)
    assert by_code == resolve(parse(str(spec)), model_bytes=10 * GIB, devices=machine)
    assert {name: size // GIB for name, size in by_code.as_dict().items()} == expected


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"free": 11}, "more than the total of 10 bytes"),
        ({"total": -1}, "pass 0 to"),
        ({"reserve": 1.5}, "bytes are whole numbers"),
        ({"free": True}, "bytes are whole numbers"),
    ],
)
def test_memory_that_cannot_be_is_refused(changes: dict[str, int], reason: str) -> None:
    with pytest.raises(AllocValueError, match=reason):
        replace(DeviceMemory(total=10, free=10), **changes)


def test_percentages_that_are_no_decimals_are_refused() -> None:
    with pytest.raises(AllocValueError, match=r"decimal\.Decimal"):
        Percent(percent=25)  # type: ignore[arg-type]
