"""Laws of a checkout read as source, and of what is said about one that has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from comfy_nodes.cli import _doctor
from comfy_nodes.contract import EVERY_NODE, OTHER_PACKS, Broken, Call, Checkout, Contract, Need, check, load_contract
from comfy_nodes.contract._checkout import Unreadable
from comfy_nodes.nodes import _unmet
from comfy_nodes.nodes.table._siblings import SIBLINGS
from comfy_nodes.nodes.table._table import TABLE

HOST = {
    "comfy/sd.py": """
import torch
from . import ops
from comfy.utils import *
from comfy.deep import renamed as load_vae
try:
    from comfy.fast import quick
except ImportError:
    def quick(): ...
if torch.cuda:
    def load_clip(paths, options={}): ...
else:
    def load_clip(paths, options={}, *, extra): ...
CoreModel = Model = None
@torch.no_grad()
def run(x): ...
@somebody.wraps
def wrapped(x): ...
class Base(torch.nn.Module):
    def __init__(self, a, b=1):
        self.given = a
    @staticmethod
    def free(x): ...
    @classmethod
    def made(cls, x): ...
class Model(Base):
    kind: int = 3
    class Inner(ops.Layer): ...
class Plain:
    pass
""",
    "comfy/ops.py": "class Layer:\n    def forward(self, x): ...\n",
    "comfy/utils.py": "def copy(a): ...\nalias = copy\n",
    "comfy/deep/__init__.py": "from .file import one as renamed\n",
    "comfy/deep/file.py": "def one(path): ...\n",
    "comfy/round.py": "from comfy.trip import thing\n",
    "comfy/trip.py": "from comfy.round import thing\n",
    "comfy/broken.py": "def (:\n",
    "nodes.py": "TABLE = {}\n",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    for name, text in HOST.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return Checkout(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *("comfy", "comfy.sd", "comfy.deep", "nodes.TABLE", "nodes.TABLE.anything", "comfy.sd.quick", "comfy.sd.copy"),
        *(
            "comfy.sd.load_vae",
            "comfy.sd.ops.Layer",
            "comfy.utils.alias",
            "comfy.sd.Model.kind",
            "comfy.sd.Model.given",
        ),
        *("comfy.sd.Model.Inner.forward", "comfy.sd.Base.parameters", "comfy.deep.file", "comfy.sd.torch"),
    ],
)
def test_what_is_there_is_found(checkout: Checkout, name: str) -> None:
    assert checkout.find(name) is not None


@pytest.mark.parametrize(
    "name",
    [
        "comfy.gone",
        "comfy.sd.gone",
        "comfy.sd.Plain.gone",
        "comfy.deep.one",
        "comfy.round.thing",
        "elsewhere",
        "nodes.gone",
    ],
)
def test_what_is_not_there_is_missing(checkout: Checkout, name: str) -> None:
    assert checkout.find(name) is None


@pytest.mark.parametrize(
    ("name", "positional"),
    [
        ("comfy.sd.load_vae", ("path",)),
        ("comfy.utils.alias", ("a",)),
        ("comfy.sd.run", ("x",)),
        ("comfy.sd.Model", ("a", "b")),
        ("comfy.sd.Model.free", ("x",)),
        ("comfy.sd.Model.made", ("x",)),
        ("comfy.sd.Model.Inner.forward", ("x",)),
    ],
)
def test_parameters_are_those_of_a_call(checkout: Checkout, name: str, positional: tuple[str, ...]) -> None:
    signature = checkout.signature(name)
    assert signature is not None
    assert signature.positional == positional


@pytest.mark.parametrize("name", ["comfy.sd.wrapped", "comfy.sd.Plain", "nodes.TABLE", "comfy.sd.torch"])
def test_what_source_does_not_show_is_unknown(checkout: Checkout, name: str) -> None:
    assert checkout.signature(name) is None


def test_a_file_that_is_no_python_is_unknown_and_not_missing(checkout: Checkout) -> None:
    with pytest.raises(Unreadable, match=r"broken\.py cannot be read"):
        checkout.find("comfy.broken.thing")
    assert check(contract_of(need("comfy.broken.thing")), checkout) == ()


def need(name: str, **fields: object) -> Need:
    given: dict[str, object] = {"kind": "symbol", "needed_by": (EVERY_NODE,), "without": "the nodes are disabled"}
    return Need(name=name, **(given | fields))  # type: ignore[arg-type]


def contract_of(*needs: Need) -> Contract:
    return Contract(needs=needs, places=("comfy", "nodes.py"))


def test_every_difference_has_its_reason(checkout: Checkout) -> None:
    whole = contract_of(
        need("comfy.sd.gone"),
        need("comfy.sd.load_vae", calls=(Call(positional=1), Call(positional=0, keywords=("file",)))),
        need("comfy.sd.copy", calls=(Call(positional=2), Call(positional=1)), optional=True),
        need("forward", kind="attribute"),
        need("backward", kind="attribute"),
        need("options", kind="key"),
    )
    assert [(each.need.name, each.reason) for each in check(whole, checkout)] == [
        ("comfy.sd.gone", "the host does not have it"),
        ("comfy.sd.load_vae", "it takes no argument 'file'"),
        ("backward", "nothing in the host has this attribute any more"),
        ("options", "nothing in the host has this key any more"),
    ]


def test_the_contract_reads_what_it_wrote() -> None:
    contract = load_contract()
    assert Contract.from_json(contract.to_json()) == contract
    assert {each.kind for each in contract.needs} == {"symbol", "override", "member", "attribute", "key"}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"needs": [{}], "places": []}', "[" * 100_000, '{"needs": 3, "places": 4}']
)
def test_an_invalid_contract_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the host contract is invalid"):
        Contract.from_json(text)


def test_only_the_nodes_concerned_are_lost() -> None:
    one = Broken(need=need("comfy.controlnet.load_controlnet", needed_by=("ControlNetLoader",)), reason="it is gone")
    lost = _unmet.disabled([one], TABLE)
    assert set(lost) == {node_id for node_id, row in TABLE.items() if row.runs == "ControlNetLoader"}
    assert set(lost.values()) == {("comfy.controlnet.load_controlnet: it is gone",)}
    others = Broken(need=need("x", needed_by=(OTHER_PACKS,)), reason="it is gone")
    assert set(_unmet.disabled([others], TABLE)) == {node.node_id for node in SIBLINGS}
    everything = Broken(need=need("x"), reason="it is gone")
    assert set(_unmet.disabled([everything], TABLE)) == {*TABLE, *(node.node_id for node in SIBLINGS)}
    optional = Broken(need=need("x", optional=True), reason="it is gone")
    guessed = Broken(need=need("x", kind="attribute"), reason="it is gone")
    assert _unmet.disabled([optional, guessed], TABLE) == {}


def test_everything_that_needs_something_is_a_node() -> None:
    known = {*(row.runs for row in TABLE.values()), EVERY_NODE, OTHER_PACKS}
    for each in load_contract().needs:
        assert each.needed_by, each.name
        assert set(each.needed_by) <= known, each.name


def test_the_doctor_names_what_a_host_lacks(checkout: Checkout) -> None:
    found = {finding.subject: finding for finding in _doctor.host_findings(checkout.folder)}
    finding = found["comfy.controlnet.load_controlnet"]
    assert finding.level == "problem"
    assert finding.message.startswith("the host does not have it; the nodes are disabled: ControlNetLoader")
    assert finding.remedy
    assert "comfy.model_management.NUM_STREAMS" not in found, "the pack does without"


def test_a_folder_without_the_program_is_not_judged(tmp_path: Path) -> None:
    assert list(_doctor.host_findings(tmp_path)) == []
