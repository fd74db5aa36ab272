"""The example workflows: which nodes, linked how, and what each shows."""

from __future__ import annotations

from typing import Final

from example_parts import (
    CARD,
    WAN_ENCODER,
    WAN_VAE,
    Example,
    checkpoint,
    checkpoint_picture,
    clip,
    controlled,
    flux_encoders,
    flux_loader,
    flux_picture,
    node,
    picture,
    planned,
    released,
    seen,
    two_experts,
    unet_loader,
    vae_loader,
    with_lora,
)

EXAMPLES: Final = (
    Example(
        name="flux dev - 8 GB moved to the cpu",
        note="The simplest placement: 8 GB of Flux leave the card and live in the host's memory. Raise "
        "`virtual_ram_gb` until the picture fits, lower it for speed.",
        nodes=flux_picture(flux_loader(virtual_ram_gb=8.0)),
    ),
    Example(
        name="flux dev - chosen automatically",
        note="`auto` in `expert_mode_allocations`: the placement with the least slowdown on this machine. The log and "
        "the `report` output say why.",
        nodes=flux_picture(flux_loader(expert_mode_allocations="auto")),
    ),
    Example(
        name="flux dev - two cards",
        note="10 GB on the first card, which computes, and the rest on the second. No byte is in the host's memory.",
        nodes=flux_picture(flux_loader(expert_mode_allocations="cuda:0,10gb;cuda:1,*")),
    ),
    Example(
        name="flux dev - two cards and the cpu, by share",
        note="Shares of the model: 60 % on the card that computes, 30 % on the second, 10 % in the host's memory.",
        nodes=flux_picture(flux_loader(expert_mode_allocations="cuda:0,60%;cuda:1,30%;cpu,10%")),
    ),
    Example(
        name="flux dev - leave a gigabyte free",
        note="`free-1gb` takes what is free on the card less one gigabyte, and the rest goes to the cpu.",
        nodes=flux_picture(flux_loader(expert_mode_allocations="cuda:0,free-1gb;cpu,*")),
    ),
    Example(
        name="flux dev - LoRA on a distributed model",
        note="The LoRA is applied at full quality, wherever the weights live. Changing its strength moves no weights.",
        nodes=with_lora(),
    ),
    Example(
        name="flux dev - release the card before decoding",
        note="`TorchspanRelease` unloads the first card when the latent is there, so that the VAE has it alone.",
        nodes=released(),
    ),
    Example(
        name="flux dev gguf - 4 GB moved to the cpu",
        note="The same four controls for a GGUF file; its weights stay packed wherever they live.",
        nodes=flux_picture(flux_loader("UnetLoaderGGUFDisTorchMultiGPU", virtual_ram_gb=4.0)),
    ),
    Example(
        name="flux dev gguf - number formats",
        note="The advanced loader: weights are unpacked to bfloat16, LoRAs applied in float32.",
        nodes=flux_picture(
            flux_loader(
                "UnetLoaderGGUFAdvancedDisTorchMultiGPU",
                dequant_dtype="bfloat16",
                patch_dtype="float32",
                patch_on_device=False,
                virtual_ram_gb=4.0,
            )
        ),
    ),
    Example(
        name="flux dev gguf - encoders on the second card",
        note="The GGUF model keeps the first card, its text encoders take the second.",
        nodes=flux_picture(
            flux_loader("UnetLoaderGGUFMultiGPU", device=CARD),
            node(
                "clip",
                "DualCLIPLoaderGGUFMultiGPU",
                clip_name1="clip_l.safetensors",
                clip_name2="t5-v1_1-xxl-encoder-Q8_0.gguf",
                type="flux",
                device="cuda:1",
            ),
            vae_loader("ae.safetensors", "cuda:1"),
        ),
    ),
    Example(
        name="flux dev gguf - legacy layout",
        note="A workflow of the first DisTorch as it still opens; `use_other_vram` fills other cards before the cpu.",
        nodes=flux_picture(
            flux_loader("UnetLoaderGGUFDisTorchLegacyMultiGPU", device=CARD, virtual_vram_gb=6.0, use_other_vram=True)
        ),
    ),
    Example(
        name="flux dev - DisTorch2 layout, encoders split",
        note="A DisTorch2 workflow: the model gives 6 GB to the second card, the encoders 4 GB to the cpu.",
        nodes=flux_picture(
            flux_loader("UNETLoaderDisTorch2MultiGPU", virtual_vram_gb=6.0, donor_device="cuda:1"),
            flux_encoders("DualCLIPLoaderDisTorch2MultiGPU", virtual_vram_gb=4.0, donor_device="cpu"),
        ),
    ),
    Example(
        name="sd15 - everything on the second card",
        note="The plain loader: a whole checkpoint on the device of your choice.",
        nodes=checkpoint_picture(
            checkpoint("CheckpointLoaderSimpleMultiGPU", "v1-5-pruned-emaonly.safetensors", device="cuda:1"), size=512
        ),
    ),
    Example(
        name="sdxl - 2 GB moved to the cpu",
        note="A checkpoint with part of its diffusion model in the host's memory.",
        nodes=checkpoint_picture(
            checkpoint("CheckpointLoaderSimpleDisTorchMultiGPU", "sd_xl_base_1.0.safetensors", virtual_ram_gb=2.0)
        ),
    ),
    Example(
        name="sdxl - a device for each part",
        note="One read of the file: diffusion model on the first card, text encoders on the second, VAE on the first.",
        nodes=checkpoint_picture(
            checkpoint(
                "CheckpointLoaderAdvancedMultiGPU",
                "sd_xl_base_1.0.safetensors",
                unet_device=CARD,
                clip_device="cuda:1",
                vae_device=CARD,
            )
        ),
    ),
    Example(
        name="sdxl - a placement for each part",
        note="The diffusion model gives 2 GB to the second card, the text encoders 1 GB to the cpu.",
        nodes=checkpoint_picture(
            checkpoint(
                "CheckpointLoaderAdvancedDisTorch2MultiGPU",
                "sd_xl_base_1.0.safetensors",
                unet_compute_device=CARD,
                unet_virtual_vram_gb=2.0,
                unet_donor_device="cuda:1",
                clip_compute_device=CARD,
                clip_virtual_vram_gb=1.0,
                clip_donor_device="cpu",
                vae_device=CARD,
            )
        ),
    ),
    Example(
        name="sdxl - ControlNet with a placement",
        note="The ControlNet gives one gigabyte to the cpu. It needs an edge picture, edges.png, in ComfyUI's inputs.",
        nodes=controlled(),
    ),
    Example(
        name="sd21 unclip - image encoder on the cpu",
        note="The image encoder runs once, on the cpu, and leaves the card to the model.",
        nodes=seen(),
    ),
    Example(
        name="sd35 - three text encoders",
        note="Three encoders with 4 GB of them in the host's memory.",
        nodes=picture(
            unet_loader("sd3.5_large.safetensors", virtual_ram_gb=6.0),
            node(
                "clip",
                "TripleCLIPLoaderDisTorchMultiGPU",
                clip_name1="clip_l.safetensors",
                clip_name2="clip_g.safetensors",
                clip_name3="t5xxl_fp16.safetensors",
                virtual_ram_gb=4.0,
            ),
            vae_loader("sd3_vae.safetensors"),
            cfg=4.5,
        ),
    ),
    Example(
        name="hidream - four text encoders",
        note="Four encoders, placed with the inputs of DisTorch2, and a large diffusion model on two cards.",
        nodes=picture(
            unet_loader("hidream_i1_full_fp16.safetensors", expert_mode_allocations="cuda:0,14gb;cuda:1,12gb;cpu,*"),
            node(
                "clip",
                "QuadrupleCLIPLoaderDisTorch2MultiGPU",
                clip_name1="clip_l_hidream.safetensors",
                clip_name2="clip_g_hidream.safetensors",
                clip_name3="t5xxl_fp8_e4m3fn_scaled.safetensors",
                clip_name4="llama_3.1_8b_instruct_fp8_scaled.safetensors",
                virtual_vram_gb=8.0,
                donor_device="cuda:1",
            ),
            vae_loader("ae.safetensors"),
            cfg=5.0,
        ),
    ),
    Example(
        name="qwen image - model and encoder split",
        note="Model and text encoder are both larger than most cards: each keeps what fits and streams the rest.",
        nodes=picture(
            unet_loader("qwen_image_fp8_e4m3fn.safetensors", virtual_ram_gb=12.0),
            node(
                "clip",
                "CLIPLoaderDisTorchMultiGPU",
                clip_name="qwen_2.5_vl_7b_fp8_scaled.safetensors",
                type="qwen_image",
                virtual_ram_gb=5.0,
            ),
            vae_loader("qwen_image_vae.safetensors"),
            cfg=2.5,
        ),
    ),
    Example(
        name="diffusers folder - moved to the cpu",
        note="A folder in the layout of diffusers, with 2 GB of its model in the host's memory.",
        nodes=checkpoint_picture(
            node("model", "DiffusersLoaderDisTorchMultiGPU", model_path="stable-diffusion-xl", virtual_ram_gb=2.0)
        ),
    ),
    Example(
        name="wan 2.1 - text to video on one card",
        note="A video model with 8 GB in the host's memory; text encoder and VAE on the second card.",
        nodes=clip(unet_loader("wan2.1_t2v_14B_fp8_e4m3fn.safetensors", virtual_ram_gb=8.0), WAN_ENCODER, WAN_VAE),
    ),
    Example(
        name="wan 2.2 - two models over two cards",
        note="Both experts compute on the first card and keep 9 GB each on the second; the host's memory is not used.",
        nodes=two_experts(),
    ),
    Example(
        name="ltx video - checkpoint with a placement",
        note="A video checkpoint with 4 GB of its model in the host's memory.",
        nodes=clip(
            checkpoint(
                "CheckpointLoaderSimpleDisTorchMultiGPU", "ltxv-13b-0.9.7-dev-fp8.safetensors", virtual_ram_gb=4.0
            ),
            node("clip", "CLIPLoaderMultiGPU", clip_name="t5xxl_fp16.safetensors", type="ltxv", device="cpu"),
            latent="EmptyLTXVLatentVideo",
            size=(768, 512, 97),
            vae=("model", 2),
            cfg=3.0,
            frame_rate=25.0,
        ),
    ),
    Example(
        name="hunyuan video gguf - over two cards",
        note="A packed video model: 6 GB on the card that computes, the rest on the second.",
        nodes=clip(
            node(
                "model",
                "UnetLoaderGGUFDisTorchMultiGPU",
                unet_name="hunyuan-video-t2v-720p-Q6_K.gguf",
                expert_mode_allocations="cuda:0,6gb;cuda:1,*",
            ),
            node(
                "clip",
                "DualCLIPLoaderMultiGPU",
                clip_name1="clip_l.safetensors",
                clip_name2="llava_llama3_fp8_scaled.safetensors",
                type="hunyuan_video",
                device="cuda:1",
            ),
            vae_loader("hunyuan_video_vae_bf16.safetensors", "cuda:1"),
            cfg=1.0,
        ),
    ),
    Example(
        name="plan before loading",
        note="A dry run: tables, prediction and a picture from the header of the file. Nothing is loaded. The second "
        "text can be pasted into `expert_mode_allocations`.",
        nodes=planned(),
    ),
    Example(
        name="which devices are seen",
        note="Lists the devices that models can use, and explains why there are not more.",
        nodes=(node("doctor", "TorchspanDoctor"), node("text", "PreviewAny", source=("doctor", 0))),
    ),
)
