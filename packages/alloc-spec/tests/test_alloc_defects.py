"""The seventeen known defects of the ancestor, each as a test named after it.

The model has 10 GiB in 40 equal blocks; the machine has cuda:0 = 24, cuda:1 = 12, cuda:2 = 8 and cpu = 128 GiB.
"""

from itertools import pairwise

import pytest

from alloc_spec import (
    AllocRuleError,
    AllocSpecError,
    AllocSyntaxError,
    Budget,
    DeviceMemory,
    ExceedsModelError,
    NoHomeError,
    UnknownDeviceError,
    from_controls,
    parse,
    parse_wire,
    resolve,
)

GIB = 2**30
MODEL = 10 * GIB
BLOCK = MODEL // 40
MACHINE = {
    name: DeviceMemory(total=size * GIB, free=size * GIB)
    for name, size in {"cuda:0": 24, "cuda:1": 12, "cuda:2": 8, "cpu": 128}.items()
}


def budget(text: str, *, compute_device: str | None = None, **more: DeviceMemory) -> Budget:
    devices = MACHINE | {name.replace("_", ":"): memory for name, memory in more.items()}
    return resolve(parse(text), model_bytes=MODEL, devices=devices, compute_device=compute_device)


@pytest.mark.parametrize(
    ("text", "on_first"),
    [("cuda:0,50%;cpu,*", 5 * GIB), ("cuda:0,0.1;cpu,*", 24 * GIB // 10), ("cuda:0,2gb;cpu,*", 2 * GIB)],
)
def test_defect_01_the_wildcard_works_in_every_dialect(text: str, on_first: int) -> None:
    assert budget(text).as_dict() == {"cuda:0": on_first, "cpu": MODEL - on_first}


def test_defect_01_two_wildcards_are_an_error_at_the_second() -> None:
    with pytest.raises(AllocRuleError, match="two devices cannot both take the rest") as caught:
        parse("cuda:0,*;cpu,*")
    assert caught.value.span == (13, 14)


def test_defect_02_the_letter_m_selects_no_dialect() -> None:
    mps = DeviceMemory(total=16 * GIB, free=16 * GIB)
    assert budget("mps,25%;cpu,75%", mps=mps).as_dict() == {"mps": MODEL // 4, "cpu": MODEL * 3 // 4}
    mlu = DeviceMemory(total=8 * GIB, free=8 * GIB)
    assert budget("mlu:0,0.5;cpu,0.5", mlu_0=mlu).as_dict() == {"mlu:0": 4 * GIB, "cpu": 6 * GIB}


@pytest.mark.parametrize("gigabytes", [4.0, 0.1, 3.3, 1 / 3, 9.999999999])
def test_defect_03_controls_move_at_least_what_was_asked_in_whole_bytes(gigabytes: float) -> None:
    spec = from_controls(compute_device="cuda:0", virtual_ram_gb=gigabytes, donor_device="cpu")
    moved = resolve(spec, model_bytes=MODEL, devices=MACHINE).bytes_for("cpu")
    assert isinstance(moved, int)
    assert gigabytes * GIB <= moved < gigabytes * GIB + 1 < gigabytes * GIB + BLOCK


def test_defect_04_small_amounts_are_exact_bytes() -> None:
    assert budget("cpu,4gb", compute_device="cuda:0").as_dict() == {"cpu": 4 * GIB, "cuda:0": 6 * GIB}
    assert budget("cuda:1,1mb;cpu,*").bytes_for("cuda:1") == 2**20


def test_defect_05_a_part_without_a_home_is_an_error_that_says_what_would_fit() -> None:
    with pytest.raises(NoHomeError, match=r"6\.32 GiB .* have no home \(cuda:0 2\.4 GiB, cpu 1\.28 GiB\)") as caught:
        budget("cuda:0,0.1;cpu,0.01")
    assert caught.value.missing_bytes == MODEL - 24 * GIB // 10 - 128 * GIB // 100
    assert caught.value.suggestion == "cuda:0,0.1;cpu,*"
    assert budget(caught.value.suggestion).bytes_for("cuda:0") == 24 * GIB // 10


def test_defect_06_ratios_are_normalised_to_their_sum() -> None:
    assert budget("cuda:0,8%;cuda:1,8%;cpu,4%").as_dict() == {"cuda:0": 4 * GIB, "cuda:1": 4 * GIB, "cpu": 2 * GIB}


def test_defect_07_the_order_of_the_text_is_the_order_along_the_model() -> None:
    assert budget("cuda:0,2.5gb;cpu,*").order == ("cuda:0", "cpu")
    assert budget("cpu,*;cuda:0,2.5gb").order == ("cpu", "cuda:0")


def test_defect_08_devices_are_not_sorted_by_name() -> None:
    assert budget("cuda:2,2gb;cuda:1,2gb;cpu,*").order == ("cuda:2", "cuda:1", "cpu")
    ten = DeviceMemory(total=8 * GIB, free=8 * GIB)
    assert budget("cuda:10,1gb;cuda:2,1gb;cpu,*", cuda_10=ten).order == ("cuda:10", "cuda:2", "cpu")


def test_defect_09_a_device_named_twice_is_an_error_at_the_second() -> None:
    with pytest.raises(AllocRuleError, match="cpu is named twice") as caught:
        parse("cpu,1gb;cpu,2gb;cuda:0,*")
    assert caught.value.span == (8, 11)


@pytest.mark.parametrize("text", ["cuda:0,-25%;cpu,75%", "cuda:0,nan;cpu,*", "cuda:0,inf;cpu,*", "cuda:0,5.0;cpu,*"])
def test_defect_10_amounts_that_cannot_be_are_errors(text: str) -> None:
    with pytest.raises(AllocSyntaxError) as caught:
        parse(text)
    assert caught.value.span[0] == 7


@pytest.mark.parametrize("text", ["cuda:0,0%", "50%", "#", "cuda:0,2gb#cuda:0;4;cpu#", "", "cuda:0,2gb##"])
def test_defect_11_degenerate_texts_are_clear_errors(text: str) -> None:
    with pytest.raises(AllocSyntaxError) as caught:
        parse(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "column", "suggestion"),
    [
        ("garbage", 7, None),
        ("cuda:0=4gb", 6, "cuda:0,4gb"),
        ("cuda:0;2gb", 6, "cuda:0,2gb"),
        ("cuda:0,2gb,cpu,*", 10, "cuda:0,2gb;cpu,*"),
    ],
)
def test_defect_12_what_is_not_the_language_is_refused_with_a_caret(
    text: str, column: int, suggestion: str | None
) -> None:
    with pytest.raises(AllocSyntaxError) as caught:
        parse(text)
    _, source_line, caret_line, hint = str(caught.value).splitlines()
    assert source_line[4:] == text
    assert caret_line == " " * (4 + column) + "^"
    assert caught.value.suggestion == suggestion
    assert (f'did you mean "{suggestion}"?' in hint) == (suggestion is not None)


@pytest.mark.parametrize("number", ["4.5.6g", "1e3", "5,5g", "4gigabanana"])
def test_defect_13_numbers_match_in_full_or_not_at_all(number: str) -> None:
    with pytest.raises(AllocSyntaxError):
        parse(f"cuda:0,{number};cpu,*")


def test_defect_13_terabytes_are_read() -> None:
    big = {name: DeviceMemory(total=8 * 2**40, free=8 * 2**40) for name in ("cuda:0", "cpu")}
    resolved = resolve(parse("cuda:0,4tb;cpu,*"), model_bytes=5 * 2**40, devices=big)
    assert resolved.as_dict() == {"cuda:0": 4 * 2**40, "cpu": 2**40}


def test_defect_14_an_unknown_device_is_an_error_that_lists_the_devices_there_are() -> None:
    with pytest.raises(UnknownDeviceError, match="there are cuda:0, cuda:1, cuda:2, cpu - did you mean") as caught:
        budget("cuda:9,2gb;cpu,*")
    assert caught.value.device == "cuda:9"
    assert caught.value.known == ("cuda:0", "cuda:1", "cuda:2", "cpu")
    assert caught.value.nearest in MACHINE


def test_defect_15_donors_are_filled_up_to_free_less_reserve() -> None:
    machine = MACHINE | {"cuda:1": DeviceMemory(total=12 * GIB, free=11 * GIB, reserve=GIB)}
    spec = from_controls(compute_device="cuda:0", virtual_ram_gb=14, donor_device=["cuda:1", "cpu"])
    moved = resolve(spec, model_bytes=20 * GIB, devices=machine)
    assert moved.as_dict() == {"cuda:0": 6 * GIB, "cuda:1": 10 * GIB, "cpu": 4 * GIB}


def test_defect_16_nothing_goes_back_to_the_compute_device_unasked() -> None:
    with pytest.raises(ExceedsModelError, match=r"100 GiB .* the model has only 10 GiB") as caught:
        budget("#cuda:0;100;cuda:2")
    assert caught.value.suggestion == "#cuda:0;10;cuda:2,cpu"
    with pytest.raises(AllocSpecError, match=r"cuda:2 would hold 10 GiB but has room for 8 GiB"):
        budget("#cuda:0;10;cuda:2")


def test_defect_17_a_donor_that_computes_is_an_error() -> None:
    with pytest.raises(AllocRuleError, match="cuda:0 computes and cannot be its own donor") as caught:
        parse_wire("#cuda:0;4;cuda:0")
    assert caught.value.span == (10, 16)


@pytest.mark.parametrize(
    "text", ["cuda:0,50%;cpu,*", "cuda:0,8%;cuda:1,8%;cpu,4%", "cuda:2,2gb;cuda:1,2gb;cpu,*", "#cuda:0;4;cpu"]
)
def test_every_budget_sums_to_the_model_in_40_blocks_or_in_bytes(text: str) -> None:
    resolved = budget(text)
    assert resolved.model_bytes == MODEL == 40 * BLOCK
    edges = [
        sum(resolved.bytes_for(name) for name in resolved.order[:index]) for index in range(len(resolved.order) + 1)
    ]
    assert all(left <= right for left, right in pairwise(edges))
    assert edges[-1] == MODEL
