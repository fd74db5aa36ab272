"""Tensors on their way into the object store: one part for each memory, no bit lost, and no store without a cluster."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared_examples import FLOATS, WHOLES, every_type, random_bits, same_bits

from ray_parallel.workers import OpenWeights, SharedWeights, SharedWriteError, StoreRoom, WeightsError
from ray_parallel.workers.cluster._cluster import _ray_environment
from ray_parallel.workers.weights._store import describe_tensors


def opened(tensors: dict[str, torch.Tensor]) -> OpenWeights:
    """What a reader would see, without a store between."""
    layout, parts = describe_tensors(tensors, {}, {})
    return OpenWeights("store", layout, [np.array(part.numpy(), copy=True) for part in parts])


def test_every_type_arrives_bit_by_bit() -> None:
    tensors = every_type()
    arrived = opened(tensors)
    assert list(arrived) == list(tensors)
    assert all(same_bits(arrived[name], tensors[name]) for name in tensors)


VIEWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "itself": lambda x: x,
    "transposed": lambda x: x.T,
    "every other row": lambda x: x[::2],
    "a row": lambda x: x[1],
    "expanded": lambda x: x[0].expand(3, -1),
    "flat": lambda x: x.reshape(-1),
    "conjugate": lambda x: x.conj(),
    "negative": lambda x: x.conj().imag if x.is_complex() else x,
    "as bytes": lambda x: x.view(torch.uint8) if not x.is_complex() else torch.view_as_real(x),
}


@given(
    dtype=st.sampled_from([*FLOATS, *WHOLES]),
    views=st.lists(st.sampled_from(sorted(VIEWS)), min_size=1, max_size=5),
    rows=st.integers(2, 5),
)
def test_views_of_one_memory_arrive_as_what_they_show(dtype: str, views: list[str], rows: int) -> None:
    base = random_bits(dtype, (rows, 4))
    tensors = {f"{place}": VIEWS[name](base) for place, name in enumerate(views)}
    arrived = opened(tensors)
    for name, tensor in tensors.items():
        shown = tensor.resolve_conj().resolve_neg().contiguous()
        assert same_bits(arrived[name], shown)


def test_a_conjugate_of_the_same_memory_is_another_tensor() -> None:
    base = torch.complex(torch.ones(2), torch.arange(2.0))
    arrived = opened({"itself": base, "conjugate": base.conj(), "negative": base.conj().imag})
    assert torch.equal(arrived["itself"], base)
    assert torch.equal(arrived["conjugate"], base.conj())
    assert torch.equal(arrived["negative"], -torch.arange(2.0))


def test_tied_tensors_are_put_once_and_stay_tied() -> None:
    base = torch.arange(6.0).view(2, 3)
    layout, parts = describe_tensors({"a": base, "b": base, "flat": base.view(-1), "other": base.clone()}, {}, {})
    assert [slot.part for slot in layout.slots] == [0, 0, 0, 1]
    assert [part.numel() for part in parts] == [24, 24]
    assert layout.size_bytes == 48
    arrived = opened({"a": base, "b": base})
    assert arrived["a"].data_ptr() == arrived["b"].data_ptr()


def test_empty_tensors_are_never_tied() -> None:
    layout, parts = describe_tensors({"a": torch.empty(0, 3), "b": torch.empty(0)}, {}, {})
    assert [slot.part for slot in layout.slots] == [0, 1]
    assert [part.numel() for part in parts] == [0, 0]


def test_a_write_to_what_others_read_is_told_by_name() -> None:
    arrived = opened({"a": torch.ones(3), "b": torch.ones(2, 2), "empty": torch.ones(0)})
    arrived.require_unwritten()
    assert len(arrived) == 3
    assert arrived.touch() == 28
    arrived["b"][0].mul_(2)
    assert arrived.written() == ("b",)
    with pytest.raises(SharedWriteError, match="'b': written in place") as refused:
        arrived.require_unwritten()
    assert refused.value.names == ("b",)


def test_a_contiguous_tensor_is_not_copied_on_the_way() -> None:
    base = torch.ones(5)
    _, (part,) = describe_tensors({"a": base}, {}, {})
    assert part.data_ptr() == base.data_ptr()


def test_notes_go_to_their_tensors() -> None:
    layout, _ = describe_tensors({"a": torch.ones(1), "b": torch.ones(1)}, {"b": {"packed": True}}, {"kind": "tiny"})
    assert [dict(slot.note) for slot in layout.slots] == [{}, {"packed": True}]
    assert layout.metadata == {"kind": "tiny"}


class Own(torch.Tensor):
    """A tensor of somebody's own, which may keep more than its bytes."""


@pytest.mark.parametrize(
    ("tensor", "what"),
    [
        (torch.ones(1, device="meta"), "meta"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.ones(1).as_subclass(Own), "Own"),
    ],
)
def test_what_has_no_plain_bytes_is_refused(tensor: torch.Tensor, what: str) -> None:
    with pytest.raises(WeightsError, match=f"tensor 'odd': is a .*{what}.*hand over dense tensors"):
        describe_tensors({"fine": torch.ones(1), "odd": tensor}, {}, {})


def test_without_a_cluster_nothing_is_put_and_none_is_started() -> None:
    """Ray left to itself would start a cluster that listens to the network."""
    with _ray_environment():
        import ray
    room = StoreRoom(1 << 30)
    with pytest.raises(WeightsError, match="have no cluster whose store holds them; start or connect one"):
        SharedWeights.from_tensors({"a": torch.ones(1)}, room=room)
    assert room.taken_bytes == 0
    assert not ray.is_initialized()
