"""The patcher of a placed model: the host's own, which leaves alone what donors hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from comfy_nodes.host._errors import HostError
from comfy_nodes.host.app import _compat
from comfy_nodes.host.app._machine import default_device
from comfy_nodes.host.placing import _weights
from comfy_nodes.host.placing._bank import HOME
from comfy_nodes.host.placing._dense import DenseOnDemand
from comfy_nodes.host.placing._placement import Placement, layer_bytes, move_own, placement_of, rebased, settle

EVERYTHING = 1e32
"""More memory than there is; the host's word for "all of it"."""


class PlacedPatcher(ModelPatcher):  # type: ignore[misc]  # the host's classes are untyped
    """Loads the compute device's share of a model; the banks of its donors are models of their own.

    Where the host asks for the size of the model, loads it or moves it, only the compute device's share is meant: the
    layers on donors are missing from `_load_list`, bring their weights over themselves, and apply LoRA patches when
    they do. Everything else is the host's: partial loading when memory is tight, eviction, hooks, clones.
    """

    size: int
    lazy_patch_dtype: torch.dtype | None = None
    """Type in which patches of packed or donors' weights are computed; None is the host's choice."""

    @classmethod
    def adopt(cls, patcher: Any) -> Self:
        """Take over from a fresh patcher of the host: nothing is loaded yet, and the fresh one is not used again."""
        adopted = cls.__new__(cls)
        adopted.__dict__.update(patcher.__dict__)
        adopted.size = 0
        return adopted

    @property
    def placement(self) -> Placement | None:
        """The homes of the model's layers."""
        return placement_of(self.model)

    def lent_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The layers that live on donors."""
        placement = self.placement
        return iter(()) if placement is None else iter(placement.layers.items())

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        """A patcher for the same model, or for another model."""
        clone = super().clone(*args, **kwargs)
        clone.lazy_patch_dtype = self.lazy_patch_dtype
        return clone

    def deepclone_multigpu(self, new_load_device: torch.device | None = None, models_cache: Any = None) -> Any:
        """A second copy of the model that computes elsewhere, with separate donors."""
        clone = super().deepclone_multigpu(new_load_device=new_load_device, models_cache=models_cache)
        if self.placement is not None:
            settle(clone.model, rebased(self.placement, clone.load_device), clone.load_device)
        clone.size = 0
        return clone

    def model_patches_models(self) -> list[Any]:
        """The models that the host loads together with this one: its patches' and its banks."""
        placement = self.placement
        return [*super().model_patches_models(), *(() if placement is None else placement.banks)]

    def model_size(self) -> int:
        """Bytes on the compute device: its share of the weights, and the buffers that donors' layers pass through."""
        if self.size <= 0:
            placement = self.placement
            buffers = 0 if placement is None else (_compat.stream_count() + 1) * placement.largest_layer_bytes
            self.size = self.share_bytes() + buffers
        return self.size

    def share_bytes(self) -> int:
        """Bytes of the weights that live on the compute device."""
        return sum(map(layer_bytes, self._own_modules()))

    def _own_modules(self) -> Iterator[nn.Module]:
        placement = self.placement
        return iter(self.model.modules()) if placement is None else placement.own_modules(self.model)

    def _load_list(self, *args: Any, **kwargs: Any) -> list[Any]:
        donors = {name for name, _ in self.lent_layers()}
        # The last entries are name, module and parameters in every version; what comes before changed.
        return [entry for entry in super()._load_list(*args, **kwargs) if entry[-3] not in donors]

    def load(
        self,
        device_to: torch.device | None = None,
        lowvram_model_memory: float = 0,
        force_patch_weights: bool = False,
        full_load: bool = False,
    ) -> Any:
        """Load the compute device's share, all of it or what fits; the layers of donors get their patches.

        Raises:
            HostError: all patches are to be written into weights, as older hosts ask before they save a model, and
                there are some that are not written to.
        """
        if force_patch_weights:
            self._require_written()
        for name, layer in self.lent_layers():
            layer.comfy_force_cast_weights = self.force_cast_weights
            self._attach(name, layer)
        result = super().load(
            device_to,
            lowvram_model_memory=EVERYTHING if full_load else lowvram_model_memory,
            force_patch_weights=force_patch_weights,
            full_load=False,
        )
        self._attach_unwritten()
        if not self.model.model_lowvram and device_to is not None:
            # The host's full load moves the model as a whole; its list has layers only, not what lies between them.
            for module in self._own_modules():
                move_own(module, device_to)
            self.model.model_loaded_weight_memory = self.share_bytes()
        return result

    def partially_load(
        self, device_to: torch.device, extra_memory: float = 0, force_patch_weights: bool = False
    ) -> Any:
        """Load more of the share; where only patches changed since it was loaded, touch only what they patch."""
        if not force_patch_weights and self._only_patches_changed(device_to):
            with self.use_ejected():
                self._patch_again(device_to)
        more_bytes = super().partially_load(device_to, extra_memory, force_patch_weights=force_patch_weights)
        # Not only after a load: any clone that is given up takes the page locks of all clones with it.
        self._pin_lent_by_the_host()
        return more_bytes

    def partially_unload(self, *args: Any, **kwargs: Any) -> Any:
        """Move some of the share to the host's memory, where it is patched at each use."""
        freed_bytes = super().partially_unload(*args, **kwargs)
        self._attach_unwritten()
        return freed_bytes

    def patch_weight_to_device(
        self,
        key: str,
        device_to: torch.device | None = None,
        inplace_update: bool = False,
        return_weight: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Write patches into a weight, or return it patched.

        A packed weight stays packed and is patched at each use instead; what is returned is dense.
        """
        weight = comfy.utils.get_attr(self.model, key)
        if _weights.is_packed(weight):
            if return_weight:
                return self._patched_dense(key, weight, device_to)
            if key in self.patches:
                name, _, parameter = key.rpartition(".")
                self._attach(name, self.model.get_submodule(name), [parameter])
            return weight
        if return_weight:
            # Hosts before 0.12 neither ask for the weight nor take the argument.
            kwargs["return_weight"] = True
        return super().patch_weight_to_device(key, device_to=device_to, inplace_update=inplace_update, **kwargs)

    def unpatch_model(self, device_to: torch.device | None = None, unpatch_weights: bool = True) -> Any:
        """Take patches off and move the compute device's share; what donors hold stays with them."""
        result = super().unpatch_model(None, unpatch_weights)
        if unpatch_weights:
            for module in self.model.modules():
                _weights.detach(module)
            if device_to is not None:
                for module in self._own_modules():
                    move_own(module, device_to)
                self.model.device = device_to
        return result

    def pre_run(self) -> Any:
        """Get ready for a sampling.

        Raises:
            HostError: layers run in the host's bypass mode, away from the device that it puts their LoRA on.
        """
        default = default_device()
        if self.load_device != torch.device(default) and any(map(_compat.is_bypassed, self.model.modules())):
            raise HostError(
                f"{type(self.model).__name__}: bypass mode works on {default} alone, and this model computes on "
                f"{self.load_device}; choose {default} as its compute device, or apply the LoRA without bypass"
            )
        return super().pre_run()

    def get_key_patches(self, *args: Any, **kwargs: Any) -> Any:
        """Weight and patches by key, for merges: packed weights are dense there.

        Raises:
            HostError: weights are quantised in a way of the host that it does not read.
        """
        try:
            patches = super().get_key_patches(*args, **kwargs)
        except AttributeError as error:
            if not any(map(_weights.is_quantised, self.model.parameters())):
                raise
            raise HostError(
                f"{type(self.model).__name__}: its weights are quantised and this ComfyUI cannot read their numbers: "
                "they cannot be merged into another model, extracted as a LoRA or changed by hooks; use the model's "
                "file that is not quantised"
            ) from error
        for key, ((weight, convert), *others) in patches.items():
            if _weights.is_packed(weight):
                patches[key] = [(DenseOnDemand(weight, partial(_weights.dense, weight)), convert), *others]
        return patches

    def model_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Weights by key, in their form on the device: packed ones dense, with the patches that are loaded."""
        weights = super().model_state_dict(*args, **kwargs)
        for key, weight in weights.items():
            if _weights.is_packed(weight):
                weights[key] = DenseOnDemand(weight, partial(self._loaded_dense, key, weight))
        return weights

    def _loaded_dense(self, key: str, weight: torch.Tensor) -> torch.Tensor:
        is_patched = _is_resident(self.model.get_submodule(key.rpartition(".")[0]))
        return self._patched_dense(key, weight, self.load_device) if is_patched else _weights.dense(weight)

    def _patched_dense(self, key: str, weight: torch.Tensor, device: torch.device | None) -> torch.Tensor:
        """The numbers that a packed weight stands for, in the type of the model, patched as a dense one is."""
        numbers = _weights.dense(weight)
        if key not in self.patches:
            return numbers
        patch = _weights.CastPatch(key, self.patches, stored_dtype=numbers.dtype, dtype=self.lazy_patch_dtype)
        return patch(numbers if device is None else numbers.to(device))

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> Any:
        """The weights as a checkpoint has them, patches included.

        Raises:
            HostError: weights are packed.
        """
        self._require_dense()
        return super().state_dict_for_saving(*args, **kwargs)

    def model_state_dict_for_saving(self, model: nn.Module | None = None, prefix: str = "") -> Any:
        """The same for a part of a checkpoint.

        The host cannot make weights of whole numbers (int8, nvfp4) wait for their patches, so those are patched here.

        Raises:
            HostError: weights are packed.
        """
        self._require_dense()
        layers = {
            name: layer
            for name, layer in (self.model if model is None else model).named_modules()
            if _weights.is_quantised(getattr(layer, "weight", None)) and not _is_resident(layer)
        }
        with _looking_resident(layers.values()):
            weights = super().model_state_dict_for_saving(model, prefix)
        for name in layers:
            key = f"{prefix}{name}.weight"
            if key in self.patches:
                patched = self.patch_weight_to_device(key, device_to=self.load_device, return_weight=True)
                weights |= {part: each.to("cpu") for part, each in patched.state_dict(f"{name}.weight").items()}
        return weights

    def _require_dense(self) -> None:
        if any(map(_weights.is_packed, self.model.parameters())):
            raise HostError(
                f"{type(self.model).__name__}: w3 weights and GGUF blocks cannot be saved as a checkpoint; save the "
                "model from a file that is not packed"
            )

    def _require_written(self) -> None:
        self._require_dense()
        if any(map(self._is_patched_at_use, self.patches)):
            raise HostError(
                f"{type(self.model).__name__}: to be saved by this ComfyUI, its patches have to be written into its "
                "weights, and those of donors are not written to; load it with the plain node to save it"
            )

    def patch_hooks(self, hooks: Any) -> Any:
        """Put on the patches of hooks, or take them off where there are none.

        The host writes them into weights. Those of donors are not written to and packed ones cannot be, so there they
        are added at each use.
        """
        result = super().patch_hooks(hooks)
        if hooks is not None:
            self._detach_hooks()
            patches = self.get_combined_hook_patches(hooks)
            for key in patches:
                if self._is_patched_at_use(key):
                    _weights.add_hook(self.model, key, patches)
        return result

    def patch_hook_weight_to_device(
        self, hooks: Any, combined_patches: Any, key: str, original_weights: Any, memory_counter: Any
    ) -> Any:
        """Write the patches of hooks into a weight, if it is one that is written to."""
        if not self._is_patched_at_use(key):
            super().patch_hook_weight_to_device(hooks, combined_patches, key, original_weights, memory_counter)

    def unpatch_hooks(self, whitelist_keys_set: set[str] | None = None) -> Any:
        """Take the patches of hooks off, or those of some weights."""
        if not whitelist_keys_set:
            self._detach_hooks()
        return super().unpatch_hooks(whitelist_keys_set)

    def _detach_hooks(self) -> None:
        for module in self.model.modules():
            _weights.detach(module, only_hooks=True)

    def _is_patched_at_use(self, key: str) -> bool:
        """Whether nothing is written into a weight: a donor's, or a packed one."""
        name, _, parameter = key.rpartition(".")
        if parameter not in _weights.PARAMETERS:
            return False
        placement = self.placement
        is_lent = placement is not None and name in placement.layers
        return is_lent or _weights.is_packed(getattr(self.model.get_submodule(name), parameter))

    def _attach(self, name: str, layer: nn.Module, parameters: Sequence[str] = _weights.PARAMETERS) -> None:
        wrappers = getattr(self, "weight_wrapper_patches", {})
        patches, dtype = self.patches, self.lazy_patch_dtype
        _weights.attach(self.model, name, layer, patches, wrappers, dtype=dtype, parameters=parameters)

    def _attach_unwritten(self) -> None:
        """Patch at each use what has no patches written into it: offloaded layers and packed weights.

        The host's own patches of offloaded layers round more often than those it writes, and loading again takes the
        functions of every layer off.
        """
        for name, layer in self._listed_layers():
            if not _is_resident(layer):
                self._attach(name, layer)
            elif _weights.is_packed(getattr(layer, "weight", None)):
                self._attach(name, layer, ["weight"])

    def _pin_lent_by_the_host(self) -> None:
        """Page-lock what is stored in the host's memory, as the host does with weights it offloads."""
        placement = self.placement
        pin = getattr(self, "pin_weight_to_device", None)
        if placement is None or pin is None:
            return
        for name, device in placement.homes.items():
            if device == HOME:
                for parameter, _ in placement.layers[name].named_parameters(recurse=False):
                    if f"{name}.{parameter}" not in self.pinned:
                        pin(f"{name}.{parameter}")

    def _only_patches_changed(self, device: torch.device) -> bool:
        """Whether the model is loaded as this patcher wants it, but for patches that layers can take on and off."""
        loaded = self.model.current_weight_patches_uuid
        if loaded is None or loaded == self.patches_uuid or self.model.device != device:
            return False
        if self.hook_patches or self.hook_backup or self.forced_hooks is not None or self.current_hooks is not None:
            return False
        if getattr(self, "weight_wrapper_patches", None):
            return False
        return all(
            getattr(layer, "comfy_force_cast_weights", False) == self.force_cast_weights
            and not (_is_resident(layer) and _weights.has_foreign_functions(layer))
            for _, layer in self._listed_layers()
        )

    def _patch_again(self, device: torch.device) -> None:
        """Take the old patches off and put this patcher's on, in place."""
        for key, backup in list(self.backup.items()):
            if backup.inplace_update:
                comfy.utils.copy_to_param(self.model, key, backup.weight)
            else:
                weight = backup.weight if key in self.patches else backup.weight.to(device)
                comfy.utils.set_attr_param(self.model, key, weight)
            if key not in self.patches:
                del self.backup[key]
        for name, layer in self._listed_layers():
            _weights.detach(layer)
            if not _is_resident(layer):
                self._attach(name, layer)
                continue
            for parameter, _ in list(layer.named_parameters(recurse=False)):
                self.patch_weight_to_device(f"{name}.{parameter}", device_to=device)
        for name, layer in self.lent_layers():
            self._attach(name, layer)
        self.model.current_weight_patches_uuid = self.patches_uuid

    def _listed_layers(self) -> list[tuple[str, nn.Module]]:
        return [entry[-3:-1] for entry in self._load_list() if hasattr(entry[-2], "comfy_cast_weights")]


def _is_resident(layer: nn.Module) -> bool:
    """Whether the host has loaded a layer to the compute device, patches written into its weights."""
    return bool(getattr(layer, "comfy_patched_weights", False))


@contextmanager
def _looking_resident(layers: Iterable[Any]) -> Iterator[None]:
    """Have the host take the weights of some layers in their stored form."""
    before = [(layer, vars(layer).get("comfy_patched_weights")) for layer in layers]
    try:
        for layer, _ in before:
            layer.comfy_patched_weights = True
        yield
    finally:
        for layer, value in before:
            if value is None:
                del layer.comfy_patched_weights
            else:
                layer.comfy_patched_weights = value
