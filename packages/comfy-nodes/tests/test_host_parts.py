"""Checkpoints, text encoders, VAEs, image encoders and ControlNets: really placed, with the stock loaders' numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from host_testing import Host, comfyui, host, request, write_model
from safetensors.torch import save_file

from comfy_nodes import host as adapter

__all__ = ["comfyui", "host"]
pytestmark = pytest.mark.host


def on_first() -> dict[str, torch.device]:
    return {"load_device": torch.device("npu:0"), "offload_device": torch.device("cpu")}


def latent() -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def vae_file(host: Host) -> Path:
    return host.models / "vae" / "tiny_vae.safetensors"


@pytest.mark.parametrize("spec", [None, "npu:0,100kb;npu:1,1mb;cpu,*", "#npu:0;4;cpu", "#npu:0;4;npu:2"])
def test_a_placed_vae_decodes_and_encodes_the_same(host: Host, spec: str | None) -> None:
    from comfy_nodes.host.loaders._parts import load_vae_file

    sd = host.module("comfy.sd")
    stock = sd.VAE(sd=host.module("comfy.utils").load_torch_file(str(vae_file(host))), device=torch.device("npu:0"))
    image = stock.decode(latent())
    encoded = stock.encode(image)
    host.free_all()
    loaded = load_vae_file(vae_file(host), request(spec))
    assert torch.equal(loaded.value.decode(latent()), image)
    assert torch.equal(loaded.value.encode(image), encoded)
    if spec is not None:
        plan = loaded.reports[0].plan
        assert plan is not None
        for index in (0, 1, 2):
            assert plan.bytes_on(f"npu:{index}") <= host.used()[index] <= plan.bytes_on(f"npu:{index}") + 512 * 150


def test_a_vae_that_the_host_made_for_its_dynamic_vram_is_placed_all_the_same(
    host: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from comfy_nodes.host.loaders._parts import load_vae_file

    patchers = host.module("comfy.model_patcher")
    if not hasattr(patchers, "CoreModelPatcher"):
        pytest.skip("this host has no dynamic VRAM")

    class Dynamic(patchers.ModelPatcher):  # type: ignore[misc,name-defined]
        """What the host's own does at loading time: weights are views of the file, of the file's type."""

        def is_dynamic(self) -> bool:
            return True

    expected = load_vae_file(vae_file(host), request(None)).value.decode(latent())
    host.free_all()
    monkeypatch.setattr(patchers, "CoreModelPatcher", Dynamic)
    with caplog.at_level("INFO", logger="comfy_nodes.host"):
        loaded = load_vae_file(vae_file(host), request("npu:0,100kb;npu:1,1mb;cpu,*"))
    assert not loaded.value.patcher.is_dynamic()
    assert {parameter.dtype for parameter in loaded.value.first_stage_model.parameters()} == {loaded.value.vae_dtype}
    assert torch.equal(loaded.value.decode(latent()), expected)
    assert sum("without the host's dynamic VRAM" in record.message for record in caplog.records) == 1


def test_controls_that_move_more_than_there_is_move_everything_and_say_so(host: Host) -> None:
    from comfy_nodes.host.loaders._parts import load_vae_file

    loaded = load_vae_file(vae_file(host), request("#npu:0;4;npu:2"))
    assert "were to be moved" in loaded.text
    plan = loaded.reports[0].plan
    assert plan is not None
    assert plan.bytes_on("npu:0") < 100


def test_a_vae_by_the_names_of_the_core_loader(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_paths = host.module("folder_paths")
    monkeypatch.setattr(
        folder_paths, "get_full_path_or_raise", lambda kind, name: str(host.models / kind / name), raising=True
    )
    pixels = adapter.load_vae("pixel_space", request(None, "npu:1"))
    assert pixels.value.device == torch.device("npu:1")
    tiny = adapter.load_vae("tiny_vae.safetensors", request("npu:1,1mb;cpu,*", "npu:1"))
    assert tiny.value.decode(latent()).isfinite().all()


def test_a_vae_without_layers_cannot_be_placed_and_says_so(host: Host) -> None:
    with pytest.raises(adapter.HostError, match="none of its layers"):
        adapter.load_vae("pixel_space", request("#npu:0;4;cpu"))


def test_a_file_that_is_no_vae(host: Host) -> None:
    from comfy_nodes.host.loaders._parts import load_vae_file

    with pytest.raises(adapter.ModelFileError, match="VAE"):
        load_vae_file(host.diffusion(), request(None))


@pytest.mark.slow
@pytest.mark.parametrize("spec", [None, "npu:0,100mb;npu:1,100mb;cpu,*", "#npu:0;0.1;npu:2"])
def test_a_placed_text_encoder_encodes_the_same(host: Host, spec: str | None) -> None:
    write_model(host, "clip")
    path = host.models / "text_encoders" / "tiny_clip_l.safetensors"
    stock = host.module("comfy.sd").load_clip([str(path)], model_options=on_first())
    tokens = stock.tokenize("a cat")
    expected = stock.encode_from_tokens(tokens)
    host.free_all()
    loaded = adapter.load_text_encoders([path], request(spec))
    assert torch.equal(loaded.value.encode_from_tokens(tokens), expected)
    if spec is not None:
        plan = loaded.reports[0].plan
        assert plan is not None and plan.streamed_bytes > 100_000_000
        assert loaded.value.patcher.loaded_size() <= plan.bytes_on("npu:0") + 1024


@pytest.mark.slow
def test_the_parts_of_a_checkpoint_are_placed_apart(host: Host) -> None:
    write_model(host, "checkpoint")
    path = host.models / "checkpoints" / "tiny_sd15_checkpoint.safetensors"
    sample = host.module("comfy.sample").sample

    def picture(model: Any, clip: Any, vae: Any) -> torch.Tensor:
        text, pooled = clip.encode_from_tokens(clip.tokenize("a cat"), return_pooled=True)
        prompt = [[text, {"pooled_output": pooled}]]
        latents = sample(
            model,
            latent(),
            2,
            1.0,
            "euler",
            "simple",
            prompt,
            prompt,
            torch.zeros(1, 4, 8, 8),
            seed=0,
            disable_pbar=True,
        )
        return torch.as_tensor(vae.decode(latents))

    stock = host.module("comfy.sd").load_checkpoint_guess_config(
        str(path), model_options=on_first(), te_model_options=on_first()
    )
    expected = picture(*stock[:3])
    del stock
    host.free_all()
    for model, clip, vae in (
        (request(None), None, None),
        (request("npu:0,10mb;npu:1,20mb;cpu,*"), request("npu:1,50mb;npu:2,*", "npu:1"), request("#npu:0;1;cpu")),
        (request("#npu:3;4;cpu", "npu:3", eject_models=True), request(None, "cpu"), request(None, "npu:2")),
    ):
        loaded = adapter.load_checkpoint(path, model, clip_request=clip, vae_request=vae)
        parts = loaded.value
        assert torch.equal(picture(parts.model, parts.clip, parts.vae), expected)
        assert parts.clip.patcher.load_device == torch.device(clip.compute_device or "" if clip else "npu:0")
        assert parts.vae.device == torch.device(vae.compute_device or "" if vae else "npu:0")
        assert len(loaded.reports) == 3
        host.free_all()


@pytest.fixture(scope="module")
def control_file(comfyui: Host) -> Path:
    """A tiny ControlNet for SD 1.5."""
    write_model(comfyui, "control")
    return comfyui.models / "controlnet" / "tiny_control.safetensors"


def controlled(host: Host, control: Any, device: str, split: Callable[[Any], Any] | None = None) -> torch.Tensor:
    """Two steps of the tiny SD 1.5 under a control; with both prompts where they are split."""
    write_model(host, "sd15")
    model = host.stock(host.models / "diffusion_models" / "tiny_sd15.safetensors", device)
    cfg = 1.0
    if split is not None:
        model, cfg = split(model), 3.0
    hint = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    text = torch.randn(1, 7, 768, generator=torch.Generator().manual_seed(3))
    prompt = [[text, {"control": control.copy().set_cond_hint(hint, 1.0), "control_apply_to_uncond": True}]]
    result = host.module("comfy.sample").sample(
        model, latent(), 2, cfg, "euler", "simple", prompt, prompt, torch.zeros(1, 4, 8, 8), seed=0, disable_pbar=True
    )
    return torch.as_tensor(result)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [None, "npu:1,1mb;npu:2,2mb;cpu,*", "#npu:1;4;cpu"])
@pytest.mark.parametrize("sampler", ["npu:0", "npu:1"])
def test_a_control_net_waits_on_its_device_and_works_where_the_sampler_does(
    host: Host, control_file: Path, spec: str | None, sampler: str
) -> None:
    stock = host.module("comfy.controlnet").load_controlnet(str(control_file))
    expected = controlled(host, stock, "npu:0")
    host.free_all()
    loaded = adapter.load_controlnet(control_file, request(spec, "npu:1"))
    assert torch.equal(controlled(host, loaded.value, sampler), expected)
    assert loaded.value.control_model_wrapped.load_device == torch.device("npu:1")
    copied = copy.deepcopy(loaded.value.control_model)
    assert getattr(copied, "_torchspan_placement", None) is None


@pytest.mark.slow
@pytest.mark.parametrize("spec", [None, "npu:3,1mb;npu:2,2mb;cpu,*"])
def test_a_control_net_follows_the_split_of_cfg(host: Host, control_file: Path, spec: str | None) -> None:
    nodes = pytest.importorskip("comfy_extras.nodes_multigpu", reason="this host has no multi-device nodes")

    def split(model: Any) -> Any:
        return nodes.MultiGPUCFGSplitNode.execute(model, 2).result[0]

    stock = host.module("comfy.controlnet").load_controlnet(str(control_file))
    expected = controlled(host, stock, "npu:0", split)
    del stock
    host.free_all()
    loaded = adapter.load_controlnet(control_file, request(spec, "npu:3"))
    assert torch.equal(controlled(host, loaded.value, "npu:0", split), expected)
    assert torch.equal(controlled(host, loaded.value, "npu:0", split), expected)


def test_a_file_that_is_no_control_net(host: Host) -> None:
    with pytest.raises(adapter.ModelFileError, match="ControlNet"):
        adapter.load_controlnet(host.diffusion(), request(None))


def test_a_control_that_moves_itself_loads_on_the_hosts_device_and_is_refused_on_others(
    host: Host, tmp_path: Path
) -> None:
    path = tmp_path / "control_lora.safetensors"
    save_file({"lora_controlnet": torch.zeros(1)}, path)
    assert type(adapter.load_controlnet(path, request(None)).value).__name__ == "ControlLora"
    for wanted in (request(None, "npu:2"), request("#npu:0;1;cpu")):
        with pytest.raises(adapter.PlacementRefusedError, match="ControlLora"):
            adapter.load_controlnet(path, wanted)


@pytest.mark.slow
def test_a_folder_of_diffusers_needs_its_files(host: Host, tmp_path: Path) -> None:
    with pytest.raises(adapter.ModelFileError, match="unet"):
        adapter.load_diffusers(tmp_path, request(None))


@pytest.mark.slow
@pytest.mark.parametrize("spec", [None, "npu:2,50mb;npu:1,100mb;cpu,*"])
def test_a_placed_image_encoder_sees_the_same(host: Host, spec: str | None) -> None:
    path = host.models / "clip_vision" / "tiny_vision.safetensors"
    if not path.is_file():
        write_model(host, "vision")
    image = torch.rand(1, 224, 224, 3, generator=torch.Generator().manual_seed(0))
    stock = host.module("comfy.clip_vision").load(str(path))
    expected = stock.encode_image(image)
    del stock
    host.free_all()
    loaded = adapter.load_clip_vision(path, request(spec, "npu:2"))
    seen = loaded.value.encode_image(image)
    assert torch.equal(seen["last_hidden_state"], expected["last_hidden_state"])
    assert torch.equal(seen["image_embeds"], expected["image_embeds"])
    assert host.used()[0] == 0 and host.used()[2] > 0
