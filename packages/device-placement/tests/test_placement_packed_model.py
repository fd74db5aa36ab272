"""A packed model computes what the dense one does: alone, compiled, placed and streamed, with fewer bytes."""

from __future__ import annotations

import copy
import io
import types

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from placement_models import Machine, Stack, accelerator, emulated, part, plan_for
from placement_packed import bf16_input, bf16_model, same_bits
from torch import Tensor, nn

from block_discovery import discover
from device_placement import Device, Hardware, Link, place, plan, predict
from device_placement._plan import aligned_bytes
from device_placement.packed import PackedError, PackedWeight, PackReport, pack_model, unpack_model

MIB = 1 << 20
X = bf16_input()


def pair(**how: object) -> tuple[Stack, Stack, PackReport]:
    """A dense model, the same one packed, and the report."""
    dense = bf16_model()
    packed = copy.deepcopy(dense)
    return dense, packed, pack_model(packed, **how)  # type: ignore[arg-type]


def test_the_large_weights_are_packed_and_the_rest_is_left() -> None:
    dense, packed, report = pair()
    assert report.packed == tuple(name for name, p in dense.named_parameters() if p.ndim == 2)
    assert report.dense_bytes == sum(p.nbytes for p in dense.parameters() if p.ndim == 2)
    assert report.packed_bytes == sum(p.nbytes for p in packed.parameters() if isinstance(p, PackedWeight))
    assert report.ratio < 0.72
    assert torch.equal(packed(X), dense(X))


def test_only_the_named_units_are_packed() -> None:
    dense, packed, report = pair(units=["blocks.1", "blocks.3.up"])
    assert report.packed == ("blocks.1.up.weight", "blocks.1.down.weight", "blocks.3.up.weight")
    assert torch.equal(packed(X), dense(X))
    with pytest.raises(PackedError, match=r"no module 'blocks\.7\.up'; name units of this model"):
        pack_model(dense, units=["blocks.0", "blocks.7.up"])
    assert not any(isinstance(p, PackedWeight) for p in dense.parameters())


def test_what_does_not_get_smaller_stays_dense_and_is_reported() -> None:
    model = nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
    with torch.no_grad():
        model.weight.view(torch.int16).copy_(torch.arange(65536).to(torch.int16).view(256, 256))
    assert pack_model(model) == PackReport(packed=(), dense_bytes=0, packed_bytes=0, incompressible=("weight",))
    assert type(model.weight) is nn.Parameter


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(256, 256),
        nn.Linear(16, 16, dtype=torch.bfloat16),
        nn.Embedding(256, 256, dtype=torch.bfloat16),
        nn.LSTM(128, 128, dtype=torch.bfloat16),
        nn.Linear(256, 256, dtype=torch.bfloat16, device="meta"),
    ],
    ids=["float32", "small", "table", "recurrent", "meta"],
)
def test_what_is_not_worth_packing_is_left(model: nn.Module) -> None:
    assert pack_model(model).packed == ()


def test_tied_weights_are_packed_once_and_stay_tied() -> None:
    model = bf16_model(2)
    part(model, "blocks.1.up").weight = part(model, "blocks.0.up").weight
    before = model(X)
    report = pack_model(model)
    assert len(report.packed) == 4
    assert part(model, "blocks.1.up").weight is part(model, "blocks.0.up").weight
    assert torch.equal(model(X), before)
    twin = copy.deepcopy(model)
    assert part(twin, "blocks.1.up").weight is part(twin, "blocks.0.up").weight


def test_saving_gives_the_dense_weights_and_unpacking_brings_them_back() -> None:
    dense, packed, _ = pair()
    for model in (packed, copy.deepcopy(packed)):
        state = model.state_dict()
        assert list(state) == list(dense.state_dict())
        for name, value in dense.state_dict().items():
            assert type(state[name]) is Tensor
            assert same_bits(state[name], value)
    file = io.BytesIO()
    torch.save(packed.state_dict(), file)
    file.seek(0)
    fresh = bf16_model(seed=9)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(fresh(X), dense(X))
    assert unpack_model(packed) == tuple(name for name, p in dense.named_parameters() if p.ndim == 2)
    assert torch.equal(packed(X), dense(X))
    assert all(type(p) is nn.Parameter for p in packed.parameters())
    assert not any(module._state_dict_hooks for module in packed.modules())


def test_other_weights_are_assigned_or_refused() -> None:
    _, packed, _ = pair()
    other = bf16_model(seed=5)
    with pytest.raises(RuntimeError, match="replace the parameter by a dense one"):
        packed.load_state_dict(other.state_dict())
    packed.load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(packed(X), other(X))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_another_dtype_is_refused_with_the_remedy(dtype: torch.dtype) -> None:
    _, packed, _ = pair()
    with pytest.raises(PackedError, match=r"or call unpack_model\(\) first"):
        packed.to(dtype)


def test_compiled_it_is_one_graph() -> None:
    dense, packed, _ = pair()
    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(X), dense(X))


def machine_of(compute: str, *donors: str) -> Hardware:
    links = [Link(source=donor, target=compute, gb_per_second=10) for donor in donors]
    return Hardware(
        compute=compute,
        devices=tuple(
            Device(name=name, total_bytes=256 * MIB, free_bytes=256 * MIB) for name in dict.fromkeys((compute, *donors))
        ),
        links=tuple(links),
    )


def test_fewer_bytes_are_planned_predicted_and_streamed(sim: types.ModuleType) -> None:
    """From discovery to the copies on each link, by the exact bytes."""
    dense, packed, report = pair()
    machine = accelerator(sim, donors=("cpu", "sim:1"))
    hardware = machine_of("sim:0", "cpu", "sim:1")
    seconds, streamed, planned = [], [], []
    with torch.no_grad():
        expected = dense(X)
        for model in (dense, packed):
            made = plan(discover(model), "sim:0,10%;sim:1,100kb;cpu,*", hardware)
            seconds.append(predict(made, hardware).transfer_seconds)
            away = [home.size_bytes for unit in made.units for home in unit.homes if home.device != "sim:0"]
            planned.append(sum(aligned_bytes(size) for size in away))
            with place(model, made, backend=machine.make_backend()) as handle:
                x = X.to("sim:0")
                model(x)
                sim.reset()
                before = sum(handle.stats().copied_bytes.values())
                assert torch.equal(model(x).cpu(), expected)
                streamed.append(sum(handle.stats().copied_bytes.values()) - before)
                torch.accelerator.synchronize(0)
    assert sim.take_violations() == ()
    assert streamed == planned
    assert streamed[1] < 0.8 * streamed[0]
    assert seconds[1] < 0.8 * seconds[0]
    assert report.ratio < 0.72


def test_it_is_encoded_on_the_device_of_the_weights_or_on_another(sim: types.ModuleType) -> None:
    dense = bf16_model(2)
    expected = dense(X)
    there = copy.deepcopy(dense).to("sim:0")
    pack_model(there)
    assert {str(p.device) for p in there.parameters()} == {"sim:0"}
    assert torch.equal(there(X.to("sim:0")).cpu(), expected)
    pack_model(dense, encode_on="sim:0")
    assert {str(p.device) for p in dense.parameters()} == {"cpu"}
    assert torch.equal(dense(X), expected)
    assert torch.equal(part(dense, "head").weight.packed, part(there, "head").weight.packed.cpu())


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_packed_and_placed_it_computes_the_same_bits(data: st.DataObject) -> None:
    """The law: whatever is packed and wherever it is placed, the bits are those of the dense model."""
    machine: Machine = emulated()
    dense = bf16_model(3, seed=data.draw(st.integers(0, 3)))
    packed = copy.deepcopy(dense)
    units = data.draw(st.lists(st.sampled_from(["blocks.0", "blocks.1", "blocks.2.down", "head"]), unique=True))
    pack_model(packed, units=units)
    names = [name for name, _ in packed.named_parameters()]
    away = data.draw(st.sets(st.sampled_from(names)))
    made = plan_for(packed, machine, home=lambda name: machine.donors[0] if name in away else None)
    with torch.no_grad(), place(packed, made, backend=machine.make_backend()) as handle:
        for step in data.draw(st.lists(st.sampled_from(["run", "lora", "pause", "resize", "copy"]), max_size=5)):
            if step == "lora":
                weight, twin = part(dense, "blocks.1.up").weight, part(packed, "blocks.1.up").weight
                delta = torch.full_like(weight, 0.01)
                assert torch.equal(nn.functional.linear(X, twin + delta), nn.functional.linear(X, weight + delta))
            elif step == "pause":
                handle.pause()
                handle.resume()
            elif step == "resize":
                handle.resize(slots=data.draw(st.integers(1, 3)))
            elif step == "copy":
                state = packed.state_dict()
                assert all(same_bits(state[name], value) for name, value in dense.state_dict().items())
            assert torch.equal(packed(X), dense(X))
    assert torch.equal(packed(X), dense(X))
