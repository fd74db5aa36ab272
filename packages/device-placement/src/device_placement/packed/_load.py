"""Load a packed file into a model, packed."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from device_placement.packed._errors import PackedError
from device_placement.packed._file import PackedFile
from device_placement.packed._model import keep_suitable
from device_placement.packed._tensor import PackedWeight


def load_packed(model: nn.Module, path: str | Path, *, prefix: str = "") -> None:
    """Give a model the tensors of a packed file, without making the packed ones dense.

    The model may be on the meta device: tensors are assigned, not copied. Lookup tables and recurrent layers get dense
    weights. `state_dict` of the model gives dense weights from then on.

    Args:
        model: of the architecture of the file.
        path: what `pack_file` wrote.
        prefix: only tensors under it, which is cut off (``"model.diffusion_model."``).

    Raises:
        PackedError: the file is damaged, or has no tensors under the prefix.
        HeaderError: it is not safetensors.
        RuntimeError: its names or shapes are not those of the model.
        OSError: it cannot be opened.
    """
    with PackedFile(path) as file:
        state: dict[str, Tensor] = {name.removeprefix(prefix): file[name] for name in file if name.startswith(prefix)}
    if not state:
        raise PackedError(f"{path} has no tensors under {prefix!r}; name a prefix of this file")
    model.load_state_dict(state, assign=True)
    state.clear()
    for parameter in model.parameters():
        if isinstance(parameter, PackedWeight):
            parameter.requires_grad_(False)
    keep_suitable(model)
