"""Real models: their blocks are found from names and shapes, and on the classes of the libraries where installed."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import pytest
import torch
from discovery_testing import Layout, layouts, share_found, sizes_of
from torch import nn

from block_discovery import discover, discover_names

KNOWN = {layout.name: layout for layout in layouts()}


@pytest.mark.parametrize("name", KNOWN)
def test_the_blocks_of_known_models_are_found_from_names_and_shapes(name: str) -> None:
    layout = KNOWN[name]
    assert share_found(discover_names(layout.sizes), layout.labels) >= 0.95


@cache
def build(family: str, name: str) -> nn.Module:
    """The model of the library's own class, without weights."""
    library: Any = importlib.import_module(family)
    with torch.device("meta"):
        if family == "transformers":
            model: nn.Module = library.AutoModel.from_config(library.AutoConfig.for_model(name))
        else:
            model = getattr(library, name)()
    return model


LIBRARIES = [layout for layout in KNOWN.values() if layout.family != "comfy"]


@pytest.mark.parametrize("layout", LIBRARIES, ids=lambda layout: layout.name)
def test_the_blocks_are_found_on_the_classes_of_the_libraries(layout: Layout) -> None:
    pytest.importorskip(layout.family)
    assert share_found(discover(build(layout.family, layout.name)), layout.labels) >= 0.95


@pytest.mark.parametrize("layout", LIBRARIES, ids=lambda layout: layout.name)
def test_the_known_layouts_are_those_of_the_libraries(layout: Layout) -> None:
    pytest.importorskip(layout.family)
    state = sizes_of(build(layout.family, layout.name).state_dict())
    assert {name: (shape, str(dtype).removeprefix("torch.")) for name, (shape, dtype) in state.items()} == layout.sizes
