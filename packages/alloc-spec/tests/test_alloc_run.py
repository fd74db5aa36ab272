"""`run`: the device runs what it holds; read, written, explained, in the budget, and refused where it cannot."""

import pickle

import pytest

from alloc_spec import (
    AllocationSpec,
    AllocRuleError,
    AllocSyntaxError,
    AllocValueError,
    Budget,
    Bytes,
    DeviceMemory,
    Donated,
    Entry,
    NoRoomError,
    Rest,
    explain,
    parse,
    parse_wire,
    resolve,
)

GIB = 2**30
MACHINE = {name: DeviceMemory(total=8 * GIB, free=8 * GIB) for name in ("cuda:0", "cuda:1", "cpu")}


@pytest.mark.parametrize(
    ("text", "canonical", "runners"),
    [
        ("cuda:0,auto;cuda:1,8gb,run;cpu,*", "cuda:0,auto;cuda:1,8gb,run;cpu,*", ("cuda:1",)),
        ("CUDA:1 , 25 % , RUN", "cuda:1,25%,run", ("cuda:1",)),
        ("cuda:1,0.5,run;cuda:2,free-1gb,run", "cuda:1,0.5,run;cuda:2,free-1gb,run", ("cuda:1", "cuda:2")),
        ("xpu,*,run;cpu,1gb", "xpu,*,run;cpu,1gb", ("xpu",)),
        ("cuda:1,5gb*,run", "cuda:1,5gb*,run", ("cuda:1",)),
        ("cuda:1,8gb,run;cpu,*#cuda:0;4;cpu", "cuda:1,8gb,run;cpu,*#cuda:0", ("cuda:1",)),
        ("run,2gb;cpu,*", "run,2gb;cpu,*", ()),
    ],
)
def test_run_stands_behind_an_amount(text: str, canonical: str, runners: tuple[str, ...]) -> None:
    spec = parse(text)
    assert (str(spec), spec.run_devices) == (canonical, runners)
    assert parse(canonical) == spec
    assert tuple(entry.device for entry in spec.entries if entry.runs) == runners


def test_the_wire_string_carries_it_and_controls_are_unchanged() -> None:
    assert parse_wire("cuda:1,8gb,run;cpu,*#cuda:0").run_devices == ("cuda:1",)
    assert parse_wire("#cuda:0;4;cuda:1").run_devices == ()
    with pytest.raises(AllocSyntaxError):
        parse("#cuda:0;4;cuda:1,run:0,run,*")
    entries = (
        Entry(device="cuda:0", amount=Rest()),
        Entry(device="cuda:1", amount=Donated(total_bytes=4), runs=True),
    )
    with pytest.raises(AllocValueError, match="use from_controls"):
        AllocationSpec(entries=entries, compute_device="cuda:0")


@pytest.mark.parametrize(
    ("text", "suggestion", "message"),
    [
        ("cuda:1,8gb,rnu;cpu,*", "cuda:1,8gb,run;cpu,*", "expected 'run' after the second ',', found 'rnu'"),
        ("cuda:1,8gb,runs", "cuda:1,8gb,run", "expected 'run'"),
        ("cuda:1,8gb run;cpu,*", "cuda:1,8gb,run;cpu,*", "found 'run'"),
        ("cuda:1,50% run;cpu,*", "cuda:1,50%,run;cpu,*", "found 'run'"),
        ("cuda:1,0.5 run;cpu,0.5", "cuda:1,0.5,run;cpu,0.5", "found 'run'"),
        ("cuda:1,* run;cpu,1gb", "cuda:1,*,run;cpu,1gb", "found 'run'"),
        ("cuda:1,8gb;run;cpu,*", "cuda:1,8gb,run;cpu,*", "expected ',' before 'run', found ';'"),
    ],
)
def test_a_mistyped_run_is_corrected(text: str, suggestion: str, message: str) -> None:
    with pytest.raises(AllocSyntaxError, match=message) as caught:
        parse(text)
    assert caught.value.suggestion == suggestion


@pytest.mark.parametrize("text", ["cuda:0,2gb;cpu,*,run", "cpu:0,2gb,run", "cpu,1gb , run;cuda:0,*#cuda:0"])
def test_the_cpu_does_not_run(text: str) -> None:
    with pytest.raises(AllocRuleError, match="cannot run blocks: it would be slower than streaming") as caught:
        parse(text)
    start, end = caught.value.span
    assert "".join(text[start:end].split()) == ",run"
    assert caught.value.suggestion is not None
    assert parse(caught.value.suggestion).run_devices == ()


def test_the_cpu_does_not_run_in_code_either() -> None:
    entry = Entry(device="cpu", amount=Bytes(size_bytes=1), runs=True)
    with pytest.raises(AllocValueError, match="cpu cannot run blocks"):
        AllocationSpec(entries=(entry,))
    with pytest.raises(AllocValueError, match="runs = 1: pass True or False"):
        Entry(device="cuda:0", amount=Rest(), runs=1)  # type: ignore[arg-type]


def test_the_budget_knows_who_runs() -> None:
    budget = resolve(
        parse("cuda:0,2gb;cuda:1,3gb,run;cpu,*"), model_bytes=9 * GIB, devices=MACHINE, compute_device="cuda:0"
    )
    assert (budget.run_devices, budget.warnings) == (frozenset({"cuda:1"}), ())
    assert "(runs its blocks)" in budget.explain()
    assert pickle.loads(pickle.dumps(budget)) == budget


def test_run_on_the_device_that_computes_is_a_warning_without_effect() -> None:
    spec = parse("cuda:0,2gb,run;cpu,*#cuda:0")
    budget = resolve(spec, model_bytes=9 * GIB, devices=MACHINE)
    assert budget.run_devices == frozenset()
    assert budget.warnings == ("cuda:0 computes anyway: 'run' has no effect there",)
    assert "'run' has no effect on cuda:0" in explain(spec)


@pytest.mark.parametrize("runners", [{"cpu"}, {"cuda:0"}, {"cuda:9"}])
def test_a_budget_refuses_what_cannot_run(runners: set[str]) -> None:
    with pytest.raises(AllocValueError, match="run_devices"):
        Budget(
            order=("cuda:0", "cpu"),
            amounts={"cuda:0": 1, "cpu": 1},
            compute_device="cuda:0",
            run_devices=frozenset(runners),
        )


def test_what_would_fit_keeps_who_runs() -> None:
    with pytest.raises(NoRoomError) as caught:
        resolve(parse("cuda:1,15gb,run;cpu,*"), model_bytes=15 * GIB, devices=MACHINE, compute_device="cuda:0")
    assert caught.value.suggestion == "cuda:1,free,run;cpu,*"


def test_it_is_explained() -> None:
    assert "2. cuda:1 holds 8 GiB of the model, and runs the blocks that it holds" in explain(
        "cuda:0,auto;cuda:1,8gb,run;cpu,*"
    )
