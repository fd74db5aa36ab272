"""The patcher of a placed model: the host's own, which leaves alone what donors hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from comfy_nodes.host import _compat, _weights
from comfy_nodes.host._bank import HOME
from comfy_nodes.host._errors import HostError
from comfy_nodes.host._placement import Placement, layer_bytes, move_own, placement_of, rebased, settle

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
    """Type in which patches of packed or lent weights are computed; None is the host's choice."""

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
        """A patcher for the same model, or for the model it is told to take."""
        clone = super().clone(*args, **kwargs)
        clone.lazy_patch_dtype = self.lazy_patch_dtype
        return clone

    def deepclone_multigpu(self, new_load_device: torch.device | None = None, models_cache: Any = None) -> Any:
        """A second copy of the model that computes elsewhere, with donors of its own."""
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
        lent = {name for name, _ in self.lent_layers()}
        # The last entries are name, module and parameters in every version; what comes before changed.
        return [entry for entry in super()._load_list(*args, **kwargs) if entry[-3] not in lent]

    def load(
        self,
        device_to: torch.device | None = None,
        lowvram_model_memory: float = 0,
        force_patch_weights: bool = False,
        full_load: bool = False,
    ) -> Any:
        """Load the compute device's share, all of it or what fits; the lent layers get their patches.

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

    def patch_weight_to_device(
        self,
        key: str,
        device_to: torch.device | None = None,
        inplace_update: bool = False,
        return_weight: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Write patches into a weight; a packed weight stays packed and is patched at each use instead."""
        if not return_weight and key in self.patches:
            name, _, parameter = key.rpartition(".")
            layer = self.model.get_submodule(name)
            if _weights.is_packed(getattr(layer, parameter, None)):
                return self._attach(name, layer)
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

    def state_dict_for_saving(self, *args: Any, **kwargs: Any) -> Any:
        """The weights as a checkpoint has them, patches included.

        Raises:
            HostError: weights are packed.
        """
        self._require_dense()
        return super().state_dict_for_saving(*args, **kwargs)

    def model_state_dict_for_saving(self, *args: Any, **kwargs: Any) -> Any:
        """The same for a part of a checkpoint.

        Raises:
            HostError: weights are packed.
        """
        self._require_dense()
        return super().model_state_dict_for_saving(*args, **kwargs)

    def _require_dense(self) -> None:
        if any(map(_weights.is_packed, self.model.parameters())):
            raise HostError(
                f"{type(self.model).__name__}: weights that are GGUF blocks cannot be saved as a checkpoint; save the "
                "model from a file that is not quantised"
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

    def _attach(self, name: str, layer: nn.Module) -> None:
        wrappers = getattr(self, "weight_wrapper_patches", {})
        _weights.attach(self.model, name, layer, self.patches, wrappers, dtype=self.lazy_patch_dtype)

    def _pin_lent_by_the_host(self) -> None:
        """Page-lock what is lent by the host's memory, as the host does with weights it offloads."""
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
