"""Laws that hold for every text, every machine and every model."""

import contextlib
from decimal import Decimal

from hypothesis import assume, example, given
from hypothesis import strategies as st

from alloc_spec import (
    AllocationSpec,
    AllocRuleError,
    AllocSyntaxError,
    Amount,
    Auto,
    Bytes,
    DeviceFraction,
    DeviceMemory,
    Dialect,
    Donated,
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
NAMES = ("cpu", "cuda:0", "cuda:1", "cuda:10", "mps")

tenths = st.integers(0, 200).map(lambda count: count * GIB // 10)
sizes = st.one_of(st.integers(0, 20 * GIB), tenths, st.integers(0, 9))
percents = st.decimals(0, 30, allow_nan=False, places=3)
fractions = st.decimals(0, 1, allow_nan=False, places=4)
amounts: st.SearchStrategy[Amount] = st.one_of(
    sizes.map(lambda size: Bytes(size_bytes=size)),
    percents.map(lambda percent: Percent(percent=abs(percent))),
    fractions.map(lambda fraction: DeviceFraction(fraction=abs(fraction))),
    sizes.map(lambda size: Free(keep_bytes=size)),
    st.just(Auto()),
)


@st.composite
def text_specs(draw: st.DrawFn) -> AllocationSpec:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    kinds = draw(st.sampled_from([amounts, percents.map(lambda value: Percent(percent=abs(value) + 1))]))
    chosen = {name: draw(kinds) for name in names}
    if draw(st.booleans()):
        chosen[draw(st.sampled_from(names))] = Rest(expected_bytes=draw(st.none() | sizes))
    with contextlib.suppress(ValueError):
        return AllocationSpec(
            entries=tuple(
                Entry(device=name, amount=amount, runs=name != "cpu" and draw(st.booleans()))
                for name, amount in chosen.items()
            ),
            compute_device=draw(st.none() | st.sampled_from(NAMES)),
        )
    assume(False)
    raise AssertionError


@st.composite
def control_specs(draw: st.DrawFn) -> AllocationSpec:
    compute, *donors = draw(st.lists(st.sampled_from(NAMES), min_size=2, max_size=4, unique=True))
    return from_controls(compute_device=compute, virtual_ram_gb=draw(st.floats(0, 30)), donor_device=donors)


@st.composite
def memories(draw: st.DrawFn) -> DeviceMemory:
    total = draw(st.integers(0, 24 * GIB))
    free = total if draw(st.booleans()) else draw(st.integers(0, total))
    return DeviceMemory(total=total, free=free, reserve=draw(st.sampled_from([0, 0, 7, GIB])))


specs = st.one_of(text_specs(), control_specs())
machines = st.fixed_dictionaries({name: memories() for name in NAMES})
models = st.one_of(st.integers(1, 20 * GIB), st.integers(1, 50))


@given(st.text())
@example("\x00")
@example("#" * 50)
@example("cuda:0," * 30)
@example("9" * 5000)
@example("cpu," + "9" * 5000 + "gb")
@example("\ud800,\udfff")
def test_any_text_is_read_or_refused_with_a_span_inside_it(text: str) -> None:
    for reader in (parse, parse_wire):
        try:
            spec = reader(text)
        except AllocSyntaxError as error:
            start, end = error.span
            assert 0 <= start <= end <= len(text)
            assert error.source == text
            assert error.message in str(error)
        else:
            assert spec.source == text


@given(st.text(alphabet="cpuda:01,;#25.gb%*-aoefr \n=", max_size=40))
def test_any_correction_can_be_read(text: str) -> None:
    try:
        parse(text)
    except AllocSyntaxError as error:
        if error.suggestion is not None:
            assert parse(error.suggestion)
            assert error.suggestion != text


@given(specs)
def test_the_canonical_text_reads_back_as_the_same_specification(spec: AllocationSpec) -> None:
    assert parse(str(spec)) == spec
    assert str(parse(str(spec))) == str(spec)


@given(specs, st.data())
def test_case_and_spaces_between_tokens_do_not_matter(spec: AllocationSpec, data: st.DataObject) -> None:
    spaces = st.text(alphabet=" \t\r\n", max_size=2)
    loose = ""
    for character in str(spec):
        space = data.draw(spaces) if character in ",;#*%-" else ""
        loose += space + data.draw(st.sampled_from([character, character.upper()])) + space
    assert parse(loose) == spec


@given(specs)
def test_everything_that_can_be_read_can_be_explained(spec: AllocationSpec) -> None:
    text = explain(spec)
    assert text.startswith(str(spec))
    for number, name in enumerate(spec.devices, start=1):
        assert f"{number}. {name} holds " in text


@given(specs, models, machines)
def test_a_budget_sums_to_the_model_within_every_room(
    spec: AllocationSpec, model_bytes: int, machine: dict[str, DeviceMemory]
) -> None:
    try:
        budget = resolve(spec, model_bytes=model_bytes, devices=machine)
    except NoSpaceError:
        return
    assert sum(budget.as_dict().values()) == budget.model_bytes == model_bytes
    for name, size_bytes in budget.as_dict().items():
        assert type(size_bytes) is int
        assert 0 <= size_bytes <= machine[name].room
    assert budget.compute_device == spec.compute_device
    assert budget.run_devices == set(spec.run_devices) - {spec.compute_device}
    no_effect = any("'run' has no effect" in warning for warning in budget.warnings)
    assert no_effect == (spec.compute_device in spec.run_devices)


@given(specs, models, machines)
def test_the_order_of_a_budget_is_the_order_of_the_text(
    spec: AllocationSpec, model_bytes: int, machine: dict[str, DeviceMemory]
) -> None:
    try:
        budget = resolve(spec, model_bytes=model_bytes, devices=machine)
    except NoSpaceError:
        return
    assert budget.order[: len(spec.devices)] == spec.devices
    implied = budget.order[len(spec.devices) :]
    assert len(implied) <= 1
    assert all(spec.dialect is Dialect.BYTES and budget.bytes_for(name) > 0 for name in implied)


@given(specs, models, machines)
def test_an_error_of_space_names_what_fits_whenever_the_machine_has_the_room(
    spec: AllocationSpec, model_bytes: int, machine: dict[str, DeviceMemory]
) -> None:
    try:
        resolve(spec, model_bytes=model_bytes, devices=machine)
    except NoSpaceError as error:
        if error.suggestion is not None:
            remedy = parse(error.suggestion)
            assert resolve(remedy, model_bytes=model_bytes, devices=machine).model_bytes == model_bytes
            assert remedy.compute_device == spec.compute_device
            assert set(remedy.run_devices) == set(spec.run_devices) & set(remedy.devices)
        else:
            assert sum(memory.room for memory in machine.values()) < model_bytes


@given(specs, models, machines)
def test_what_was_asked_for_is_given_or_there_is_a_warning(
    spec: AllocationSpec, model_bytes: int, machine: dict[str, DeviceMemory]
) -> None:
    try:
        budget = resolve(spec, model_bytes=model_bytes, devices=machine)
    except NoSpaceError:
        return
    for entry in spec.entries:
        held = budget.bytes_for(entry.device)
        warned = any(warning.startswith(f"{entry.device} ") for warning in budget.warnings)
        match entry.amount:
            case Bytes(size_bytes=size_bytes):
                assert held == size_bytes or (held < size_bytes and warned)
            case Percent(percent=percent) if spec.dialect is Dialect.MIXED:
                assert abs(held - model_bytes * percent / 100) < 1 or warned
            case DeviceFraction(fraction=fraction):
                assert held <= machine[entry.device].total * fraction
            case Free(keep_bytes=keep_bytes):
                assert held == 0 or held + keep_bytes <= machine[entry.device].free
            case Rest(expected_bytes=int(expected_bytes)):
                assert (held > expected_bytes) == warned


@given(control_specs(), models, machines)
def test_controls_move_exactly_what_was_asked_to_donors_in_order(
    spec: AllocationSpec, model_bytes: int, machine: dict[str, DeviceMemory]
) -> None:
    try:
        budget = resolve(spec, model_bytes=model_bytes, devices=machine)
    except NoSpaceError:
        return
    compute, *donors = spec.devices
    assert spec.entries[1].amount == Donated(total_bytes=model_bytes - budget.bytes_for(compute))
    for index, donor in enumerate(donors):
        if any(budget.bytes_for(later) for later in donors[index + 1 :]):
            assert budget.bytes_for(donor) == machine[donor].room


@given(models, st.lists(st.integers(0, 10**6), min_size=1, max_size=5).filter(any))
def test_a_ratio_is_right_to_the_byte(model_bytes: int, weights: list[int]) -> None:
    text = ";".join(f"cuda:{index},{weight}%" for index, weight in enumerate(weights))
    room = DeviceMemory(total=2**40, free=2**40)
    budget = resolve(
        parse(text), model_bytes=model_bytes, devices={f"cuda:{index}": room for index in range(len(weights))}
    )
    for index, weight in enumerate(weights):
        assert abs(budget.bytes_for(f"cuda:{index}") - Decimal(model_bytes) * weight / sum(weights)) < 1


@given(text_specs(), models, machines, st.permutations(NAMES))
def test_the_order_in_which_devices_are_listed_makes_no_difference(
    spec: AllocationSpec, model_bytes: int, machine: dict[str, DeviceMemory], names: list[str]
) -> None:
    shuffled = {name: machine[name] for name in names}
    try:
        budget = resolve(spec, model_bytes=model_bytes, devices=machine)
    except NoSpaceError as error:
        try:
            resolve(spec, model_bytes=model_bytes, devices=shuffled)
        except NoSpaceError as twin:
            assert error.args[:-1] == twin.args[:-1]
        else:
            raise AssertionError("the other order resolves") from error
    else:
        assert resolve(spec, model_bytes=model_bytes, devices=shuffled) == budget


@given(text_specs(), st.data())
def test_a_device_named_twice_is_found_wherever_it_stands(spec: AllocationSpec, data: st.DataObject) -> None:
    entries = [f"{entry.device},{entry.amount}" for entry in spec.entries]
    twin = data.draw(st.sampled_from(spec.devices))
    entries.insert(data.draw(st.integers(0, len(entries))), f"{twin},auto")
    doubled = ";".join(entries)
    try:
        parse(doubled)
    except AllocRuleError as error:
        assert error.message == f"{twin} is named twice"
        assert doubled[slice(*error.span)] == twin
        assert twin in doubled[: error.span[0]]
    else:
        raise AssertionError(f"{doubled} was read")
