"""Files that `torchspan pack` wrote, on the real host: packed wherever they live, the same bits as the file before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from host_testing import Host, comfyui, host, request, sized

from comfy_nodes import host as adapter
from device_placement.packed import pack_file

__all__ = ["comfyui", "host", "sized"]
pytestmark = pytest.mark.host

SPECS = (None, "npu:0,300kb;npu:1,300kb;cpu,*", "npu:0,0mb;npu:1,*")


@pytest.fixture
def packed(host: Host, tmp_path: Path) -> Path:
    """The tiny model in bfloat16, packed; its matrices are smaller than those that are packed by default."""
    report = pack_file(host.diffusion("bfloat16"), tmp_path / "m.w3.safetensors", least_weights=1 << 10)
    assert report.packed > 4
    return tmp_path / "m.w3.safetensors"


def packed_bytes(model: object) -> list[int]:
    parameters = model.model.diffusion_model.parameters()  # type: ignore[attr-defined]
    return [p.nbytes for p in parameters if getattr(p, "_layout_cls", None) == "TorchspanW3Layout"]


@pytest.mark.parametrize("spec", SPECS)
def test_it_samples_what_the_file_before_samples(host: Host, packed: Path, spec: str | None) -> None:
    expected = host.sample(host.stock(host.diffusion("bfloat16")))
    host.free_all()
    model = adapter.load_diffusion_model(packed, request(spec)).value
    assert len(packed_bytes(model)) > 4
    assert torch.equal(host.sample(model), expected)


def test_packed_bytes_are_planned_and_held(sized: Host, host: Host, packed: Path) -> None:
    def planned(path: Path) -> int:
        loaded = adapter.load_diffusion_model(path, request("npu:0,300kb;npu:1,*"))
        host.sample(loaded.value)
        plan = loaded.reports[0].plan
        assert plan is not None
        (bank,) = loaded.value.placement.banks
        assert bank.loaded_size() == plan.bytes_on("npu:1")
        return plan.size_bytes

    dense = planned(host.diffusion("bfloat16"))
    host.free_all()
    assert planned(packed) < 0.85 * dense


@pytest.mark.parametrize("spec", SPECS)
def test_a_lora_at_use_gives_the_bits_of_the_patched_dense_model(host: Host, packed: Path, spec: str | None) -> None:
    dense = adapter.load_diffusion_model(host.diffusion("bfloat16"), request(SPECS[1])).value
    expected = host.sample(host.lora(dense, 0.8))
    host.free_all()
    model = adapter.load_diffusion_model(packed, request(spec)).value
    patched = host.sample(host.lora(model, 0.8))
    assert torch.equal(patched, expected)
    assert not torch.equal(host.sample(model), expected)


def test_weights_that_are_read_are_dense_and_saving_is_refused(host: Host, packed: Path) -> None:
    model = adapter.load_diffusion_model(packed, request(SPECS[1])).value
    twin = adapter.load_diffusion_model(host.diffusion("bfloat16"), request(SPECS[1])).value
    found, expected = model.model_state_dict(), twin.model_state_dict()
    for name, value in expected.items():
        assert torch.equal(torch.add(found[name], 0), value), name
    with pytest.raises(adapter.HostError, match="w3 weights and GGUF blocks cannot be saved"):
        model.state_dict_for_saving()


def test_another_storage_type_is_that_of_the_stock_loader(host: Host, packed: Path) -> None:
    expected = host.sample(host.stock(host.diffusion("bfloat16"), dtype=torch.float8_e4m3fn))
    host.free_all()
    model = adapter.load_diffusion_model(packed, request(None), weight_dtype="fp8_e4m3fn").value
    assert packed_bytes(model) == []
    assert torch.equal(host.sample(model), expected)


def test_a_damaged_file_and_a_text_encoder_are_refused(host: Host, packed: Path) -> None:
    with pytest.raises(adapter.HostError, match="text encoders are not loaded packed"):
        adapter.load_text_encoders([packed], request(None))
    raw = bytearray(packed.read_bytes())
    raw[len(raw) // 2] ^= 255
    packed.write_bytes(raw)
    with pytest.raises(adapter.HostError, match="is damaged"):
        adapter.load_diffusion_model(packed, request(None))


def test_other_loaders_read_the_dense_weights(host: Host, packed: Path) -> None:
    from comfy_nodes.host.app import _compat

    found, metadata = _compat.read_torch_file(str(packed))
    expected, said = _compat.read_torch_file(str(host.diffusion("bfloat16")))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert dict(metadata or {}) == dict(said or {})
