"""Resolution, rule by rule as docs/allocation-grammar.md states them."""

import pytest

from alloc_spec import (
    AllocSyntaxError,
    AllocValueError,
    Budget,
    ComputeDeviceError,
    DeviceMemory,
    NoHomeError,
    NoRoomError,
    UnknownDeviceError,
    parse,
    resolve,
)
from alloc_spec._settle import apportion

GIB = 2**30
MIB = 2**20
MACHINE = {
    name: DeviceMemory(total=size * GIB, free=size * GIB)
    for name, size in {"cuda:0": 24, "cuda:1": 12, "cuda:2": 8, "cpu": 128}.items()
}


def budget(text: str, model_gib: float = 10, *, compute_device: str | None = None, **memory: DeviceMemory) -> Budget:
    devices = MACHINE | {name.replace("_", ":"): value for name, value in memory.items()}
    return resolve(parse(text), model_bytes=int(model_gib * GIB), devices=devices, compute_device=compute_device)


def gibs(
    text: str, model_gib: float = 10, *, compute_device: str | None = None, **memory: DeviceMemory
) -> dict[str, float]:
    resolved = budget(text, model_gib, compute_device=compute_device, **memory)
    assert resolved.model_bytes == int(model_gib * GIB)
    return {name: size_bytes / GIB for name, size_bytes in resolved.as_dict().items()}


def memory(total: float, free: float | None = None, reserve: float = 0) -> DeviceMemory:
    free = total if free is None else free
    return DeviceMemory(total=int(total * GIB), free=int(free * GIB), reserve=int(reserve * GIB))


# Bytes


def test_sizes_are_exact_and_the_wildcard_takes_the_rest() -> None:
    assert gibs("cuda:0,2.5gb;cuda:1,512mb;cpu,*") == {"cuda:0": 2.5, "cuda:1": 0.5, "cpu": 7}


def test_the_wildcard_may_stand_anywhere_and_be_any_device() -> None:
    assert gibs("cuda:0,*;cpu,4gb") == {"cuda:0": 6, "cpu": 4}
    assert gibs("cuda:1,1gb;cuda:0,*;cpu,4gb") == {"cuda:1": 1, "cuda:0": 5, "cpu": 4}


def test_the_cpu_is_the_implied_rest_of_sizes_and_comes_last() -> None:
    assert gibs("cuda:1,1gb;cuda:0,2gb") == {"cuda:1": 1, "cuda:0": 2, "cpu": 7}


def test_the_cpu_is_not_added_when_nothing_is_left() -> None:
    assert budget("cuda:0,6gb;cuda:1,4gb").order == ("cuda:0", "cuda:1")


def test_a_size_for_the_cpu_is_exact_and_the_rest_stays_where_the_model_computes() -> None:
    assert gibs("cpu,4gb", compute_device="cuda:0") == {"cpu": 4, "cuda:0": 6}
    assert gibs("cuda:1,1gb;cpu,4gb", compute_device="cuda:0") == {"cuda:1": 1, "cpu": 4, "cuda:0": 5}


@pytest.mark.parametrize("compute_device", [None, "cpu", "cuda:0"])
def test_sizes_for_everybody_that_do_not_suffice_are_an_error(compute_device: str | None) -> None:
    with pytest.raises(NoHomeError) as caught:
        budget("cuda:0,1gb;cpu,4gb", compute_device=compute_device)
    assert caught.value.missing_bytes == 5 * GIB
    assert caught.value.amounts == (("cuda:0", GIB), ("cpu", 4 * GIB))
    assert caught.value.suggestion == "cuda:0,1gb;cpu,*"


def test_a_size_beyond_what_is_left_is_cut_with_a_warning() -> None:
    resolved = budget("cuda:0,6gb;cuda:1,6gb;cpu,*")
    assert resolved.as_dict() == {"cuda:0": 6 * GIB, "cuda:1": 4 * GIB, "cpu": 0}
    assert resolved.warnings == ("cuda:1 was to hold 6 GiB, but only 4 GiB of the model were left for it",)


def test_an_expected_rest_is_no_limit() -> None:
    assert budget("cuda:0,2gb;cpu,8gb*").warnings == ()
    resolved = budget("cuda:0,2gb;cpu,7gb*")
    assert resolved.bytes_for("cpu") == 8 * GIB
    assert resolved.warnings == ("cpu takes 8 GiB, more than the 7 GiB expected there",)


def test_a_rest_of_nothing_is_fine() -> None:
    assert gibs("cuda:0,10gb;cpu,*") == {"cuda:0": 10, "cpu": 0}


def test_a_size_beyond_the_room_is_an_error_though_the_model_has_it() -> None:
    with pytest.raises(NoRoomError) as caught:
        budget("cuda:1,11gb;cpu,*", 20, cuda_1=memory(12, 11.5, reserve=1))
    error = caught.value
    assert (error.devices, error.wanted_bytes, error.room_bytes) == (("cuda:1",), 11 * GIB, 21 * GIB // 2)
    assert error.missing_bytes == GIB // 2
    assert error.suggestion == "cuda:1,free;cpu,*"


def test_a_rest_beyond_the_room_is_an_error() -> None:
    with pytest.raises(NoRoomError) as caught:
        budget("cuda:0,2gb;cuda:2,*", 20)
    assert caught.value.devices == ("cuda:2",)
    assert caught.value.missing_bytes == 10 * GIB
    assert caught.value.suggestion == "cuda:0,2gb;cuda:2,free;cpu,*"


def test_an_implied_rest_beyond_the_room_is_an_error() -> None:
    with pytest.raises(NoRoomError) as caught:
        budget("cuda:1,2gb", 20, cpu=memory(10))
    assert caught.value.devices == ("cpu",)
    assert caught.value.missing_bytes == 8 * GIB
    assert caught.value.suggestion == "cuda:1,2gb;cpu,free;cuda:0,*"


def test_an_implied_rest_needs_a_cpu() -> None:
    with pytest.raises(UnknownDeviceError, match="it takes the rest, since no other device has a '\\*'") as caught:
        resolve(parse("cuda:0,2gb"), model_bytes=10 * GIB, devices={"cuda:0": memory(24)})
    assert caught.value.device == "cpu"
    whole = resolve(parse("cuda:0,10gb"), model_bytes=10 * GIB, devices={"cuda:0": memory(24)})
    assert whole.order == ("cuda:0",)


# Ratio


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cuda:0,8%;cuda:1,8%;cpu,4%", {"cuda:0": 4, "cuda:1": 4, "cpu": 2}),
        ("mps,25%;cpu,75%", {"mps": 2.5, "cpu": 7.5}),
        ("cuda:0,300%;cpu,100%", {"cuda:0": 7.5, "cpu": 2.5}),
        ("cuda:0,0%;cpu,3%", {"cuda:0": 0, "cpu": 10}),
        ("cuda:0,100%", {"cuda:0": 10}),
    ],
)
def test_percentages_alone_are_shares_of_their_sum(text: str, expected: dict[str, float]) -> None:
    assert gibs(text, mps=memory(16)) == expected
    assert budget(text, mps=memory(16)).warnings == ()


def test_odd_bytes_of_a_ratio_go_to_the_largest_remainders() -> None:
    thirds = resolve(parse("cuda:0,1%;cuda:1,1%;cpu,1%"), model_bytes=11, devices=MACHINE)
    assert thirds.as_dict() == {"cuda:0": 4, "cuda:1": 4, "cpu": 3}
    uneven = resolve(parse("cuda:0,1%;cuda:1,5%;cpu,4%"), model_bytes=4, devices=MACHINE)
    assert uneven.as_dict() == {"cuda:0": 0, "cuda:1": 2, "cpu": 2}


def test_one_percentage_alone_is_the_whole_model_with_a_warning() -> None:
    resolved = budget("cuda:0,50%")
    assert resolved.as_dict() == {"cuda:0": 10 * GIB}
    assert resolved.warnings == (
        'cuda:0 holds the whole model: percentages alone are shares of their sum; add ";cpu,*" to make them shares of '
        "the model",
    )


def test_a_share_beyond_the_room_is_an_error() -> None:
    with pytest.raises(NoRoomError) as caught:
        budget("cuda:2,50%;cuda:1,50%", 20)
    assert caught.value.devices == ("cuda:2",)
    assert caught.value.missing_bytes == 2 * GIB
    assert caught.value.suggestion == "cuda:2,free;cuda:1,free"


def test_apportioning_needs_no_floating_point() -> None:
    huge = 2**62 + 1
    resolved = resolve(
        parse("cuda:0,50%;cpu,50%"),
        model_bytes=huge,
        devices={name: DeviceMemory(total=huge, free=huge) for name in ("cuda:0", "cpu")},
    )
    assert resolved.as_dict() == {"cuda:0": 2**61 + 1, "cpu": 2**61}
    assert apportion(0, []) == []


# Fraction


def test_fractions_are_of_total_memory_and_filled_in_order() -> None:
    assert gibs("cuda:2,0.5;cpu,0.5") == {"cuda:2": 4, "cpu": 6}
    assert gibs("cuda:2,0.25;cuda:1,0.5;cpu,*", cuda_2=memory(8, 4)) == {"cuda:2": 2, "cuda:1": 6, "cpu": 2}


def test_the_model_may_use_the_fraction_and_no_more_than_it_needs() -> None:
    assert gibs("cuda:0,0.9;cpu,*") == {"cuda:0": 10, "cpu": 0}


def test_a_part_of_a_byte_is_not_used() -> None:
    odd = {"cuda:0": DeviceMemory(total=7, free=7), "cpu": DeviceMemory(total=99, free=99)}
    assert resolve(parse("cuda:0,0.5;cpu,*"), model_bytes=10, devices=odd).bytes_for("cuda:0") == 3


def test_a_fraction_beyond_the_room_is_cut_to_it_with_a_warning() -> None:
    resolved = budget("cuda:2,0.75;cpu,*", cuda_2=memory(8, 6, reserve=1))
    assert resolved.as_dict() == {"cuda:2": 5 * GIB, "cpu": 5 * GIB}
    assert resolved.warnings == ("cuda:2 may use 6 GiB, but has room for only 5 GiB (free less reserve)",)
    assert budget("cuda:2,0.75;cpu,*", 4, cuda_2=memory(8, 6, reserve=1)).warnings == ()


def test_a_device_that_is_asked_too_late_is_named() -> None:
    resolved = budget("cpu,0.5;cuda:0,0.5")
    assert resolved.as_dict() == {"cpu": 10 * GIB, "cuda:0": 0}
    assert resolved.warnings == ("cuda:0 holds nothing: the whole model has a home before it is asked",)


def test_fractions_have_no_implied_rest() -> None:
    with pytest.raises(NoHomeError) as caught:
        budget("cuda:0,0.1", compute_device="cuda:1")
    assert caught.value.suggestion == "cuda:0,0.1;cpu,*"


# Free memory


@pytest.mark.parametrize(
    ("text", "reserve", "expected"),
    [("free", 0, 6), ("free", 1, 5), ("free-2gb", 0, 4), ("free-2gb", 1, 4), ("free-1gb", 2, 4), ("free-0b", 2, 4)],
)
def test_free_memory_less_the_larger_of_both_reserves(text: str, reserve: float, expected: float) -> None:
    assert gibs(f"cuda:2,{text};cpu,*", cuda_2=memory(8, 6, reserve)) == {"cuda:2": expected, "cpu": 10 - expected}


def test_a_reserve_above_what_is_free_leaves_nothing_with_a_warning() -> None:
    resolved = budget("cuda:2,free-7gb;cpu,*", cuda_2=memory(8, 6))
    assert resolved.bytes_for("cuda:2") == 0
    assert resolved.warnings == ('cuda:2 holds nothing: "free-7gb" leaves none of its free memory',)


# Mixed


def test_percentages_in_a_mix_are_shares_of_the_model() -> None:
    assert gibs("cuda:0,2gb;cuda:1,25%;cpu,*") == {"cuda:0": 2, "cuda:1": 2.5, "cpu": 5.5}
    assert gibs("cuda:0,50%;cpu,*") == {"cuda:0": 5, "cpu": 5}
    assert gibs("cuda:0,60%;cuda:1,40%;cpu,*") == {"cuda:0": 6, "cuda:1": 4, "cpu": 0}


def test_percentages_of_100_leave_no_odd_byte() -> None:
    odd = resolve(parse("cuda:0,50%;cuda:1,50%;cpu,*"), model_bytes=11, devices=MACHINE)
    assert odd.as_dict() == {"cuda:0": 6, "cuda:1": 5, "cpu": 0}


def test_exact_demands_come_before_limits_wherever_they_stand() -> None:
    assert gibs("cuda:0,free;cuda:1,25%;cuda:2,2gb;cpu,*") == {"cuda:0": 5.5, "cuda:1": 2.5, "cuda:2": 2, "cpu": 0}


def test_sizes_come_before_percentages() -> None:
    resolved = budget("cuda:1,50%;cuda:0,8gb;cpu,*")
    assert resolved.as_dict() == {"cuda:1": 2 * GIB, "cuda:0": 8 * GIB, "cpu": 0}
    assert resolved.warnings == ("cuda:1 was to hold 5 GiB, but only 2 GiB of the model were left for it",)


def test_a_mix_has_no_implied_rest() -> None:
    with pytest.raises(NoHomeError) as caught:
        budget("cuda:0,2gb;cuda:1,25%")
    assert caught.value.suggestion == "cuda:0,2gb;cuda:1,25%;cpu,*"


# Auto


def test_auto_takes_half_the_room_at_most() -> None:
    resolved = budget("cuda:2,auto;cpu,*", cuda_2=memory(8, 7, reserve=1))
    assert resolved.as_dict() == {"cuda:2": 3 * GIB, "cpu": 7 * GIB}
    assert resolved.auto_devices == {"cuda:2"}
    assert resolved.warnings == ()


def test_auto_comes_after_everything_but_the_rest() -> None:
    assert gibs("cuda:0,auto;cuda:2,free-2gb;cuda:1,1gb;cpu,*") == {"cuda:0": 3, "cuda:2": 6, "cuda:1": 1, "cpu": 0}


def test_auto_grows_when_the_rest_has_no_other_home() -> None:
    resolved = budget("cuda:2,auto;cuda:1,auto", 15)
    assert resolved.as_dict() == {"cuda:2": 8 * GIB, "cuda:1": 7 * GIB}
    assert resolved.warnings == tuple(
        f"{name} is filled beyond half of its room: the rest has no other home" for name in ("cuda:2", "cuda:1")
    )


def test_auto_grows_when_the_wildcard_is_full() -> None:
    resolved = budget("cuda:0,auto;cuda:2,*", 22)
    assert resolved.as_dict() == {"cuda:0": 14 * GIB, "cuda:2": 8 * GIB}
    assert len(resolved.warnings) == 1


def test_auto_that_cannot_grow_enough_is_an_error() -> None:
    with pytest.raises(NoHomeError) as caught:
        budget("cuda:2,auto;cuda:1,auto", 25)
    assert caught.value.missing_bytes == 5 * GIB
    with pytest.raises(NoRoomError) as full:
        budget("cuda:1,auto;cuda:2,*", 25)
    assert full.value.devices == ("cuda:2",)
    assert full.value.missing_bytes == 5 * GIB


# Devices and sizes


def test_device_names_are_matched_without_case_and_spaces() -> None:
    devices = {" CUDA:0": memory(24), "Cpu": memory(64)}
    resolved = resolve(parse("Cuda:0,2gb;cpu,*"), model_bytes=GIB * 4, devices=devices, compute_device="CUDA:0 ")
    assert resolved.order == ("cuda:0", "cpu")
    assert resolved.compute_device == "cuda:0"


def test_a_device_given_twice_is_refused() -> None:
    with pytest.raises(AllocValueError, match="cuda:0 is given twice"):
        resolve(parse("cpu,*"), model_bytes=1, devices={"cuda:0": memory(1), "CUDA:0": memory(1)})


@pytest.mark.parametrize("name", ["", "cuda:", "cuda:0,cpu", "gpu 0"])
def test_a_device_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(AllocSyntaxError):
        resolve(parse("cpu,*"), model_bytes=1, devices={name: memory(1)})


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        ("cuda,2gb;cpu,*", "cuda", "cuda:"),
        ("cuda0,2gb;cpu,*", "cuda0", "cuda:0"),
        ("cuda:0,2gb;cpy,*", "cpy", "cpu"),
        ("tpu:77,2gb;cpu,*", "tpu:77", None),
        ("#cuda:0;4;cuda:9", "cuda:9", "cuda:"),
        ("cpu,*#cuda:7", "cuda:7", "cuda:"),
    ],
)
def test_an_unknown_device_is_named_with_the_nearest(text: str, unknown: str, nearest: str | None) -> None:
    with pytest.raises(UnknownDeviceError) as caught:
        budget(text)
    assert caught.value.device == unknown
    assert caught.value.known == tuple(MACHINE)
    assert (caught.value.nearest or "").startswith(nearest or "")
    assert (caught.value.nearest is None) == (nearest is None)


def test_a_device_beside_the_text_is_no_obstacle() -> None:
    assert budget("cpu,*").order == ("cpu",)


def test_no_devices_at_all() -> None:
    with pytest.raises(UnknownDeviceError, match="no devices were given"):
        resolve(parse("cpu,*"), model_bytes=1, devices={})


def test_the_compute_device_comes_from_the_text_or_the_argument() -> None:
    assert budget("cpu,*").compute_device is None
    assert budget("cpu,*", compute_device="cuda:0").compute_device == "cuda:0"
    assert budget("cpu,*#cuda:0").compute_device == "cuda:0"
    assert budget("cpu,*#cuda:0", compute_device="CUDA:0").compute_device == "cuda:0"
    assert budget("#cuda:0;4;cpu").compute_device == "cuda:0"


@pytest.mark.parametrize("text", ["#cuda:0;4;cpu", "cpu,*#cuda:0"])
def test_two_compute_devices_are_an_error(text: str) -> None:
    with pytest.raises(ComputeDeviceError) as caught:
        budget(text, compute_device="cuda:1")
    assert (caught.value.in_spec, caught.value.given) == ("cuda:0", "cuda:1")


def test_the_compute_device_must_exist() -> None:
    with pytest.raises(UnknownDeviceError, match="named as the compute device"):
        budget("cpu,*", compute_device="cuda:5")


@pytest.mark.parametrize("model_bytes", [0, -1, 1.5, True, None])
def test_a_model_has_a_size(model_bytes: int) -> None:
    with pytest.raises(AllocValueError) as caught:
        resolve(parse("cpu,*"), model_bytes=model_bytes, devices=MACHINE)
    assert caught.value.field == "model_bytes"


def test_nothing_fits_anywhere() -> None:
    with pytest.raises(NoRoomError) as caught:
        budget("cuda:0,2gb;cpu,*", 1000)
    assert caught.value.suggestion is None
    assert str(caught.value).endswith("free memory, lower the reserve, add a device, or use a smaller model")


def test_the_devices_are_not_changed() -> None:
    devices = dict(MACHINE)
    resolve(parse("cuda:0,2gb"), model_bytes=10 * GIB, devices=devices)
    assert devices == MACHINE
