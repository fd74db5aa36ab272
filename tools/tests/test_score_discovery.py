"""The score counts what it says, on trees made by hand."""

from __future__ import annotations

import json
import re

import pytest
from torch import nn

import score_discovery
from block_discovery import BlockTree, TensorInfo, Unit
from discovery_oracles import FAMILIES, Oracle, load
from score_discovery import Score, compare, holds, main, render, score

STATE = {f"{path}.{part}": 10 for path in ("a", "b.0", "b.1", "c") for part in ("x", "y")} | {
    "big.x": 200,
    "big.y": 200,
}


def tree(**units: str) -> BlockTree:
    """Units by path, ``__`` for a dot, each with these tensors; ``rest`` is the rest."""
    made = [
        Unit(
            path="" if path == "rest" else path.replace("__", "."),
            class_name="",
            kind="rest" if path == "rest" else "block",
            group=None,
            tensors=tuple(TensorInfo(name=name, size_bytes=STATE[name]) for name in names.split()),
        )
        for path, names in units.items()
    ]
    return BlockTree(units=tuple(made))


BIG = {"big": "big.x big.y"}


@pytest.mark.parametrize(
    ("units", "label", "expected"),
    [
        ({"a": "a.x a.y"}, "a", {"exact": 20}),
        ({"b__0": "b.0.x b.0.y", "b__1": "b.1.x b.1.y"}, "b", {"finer": 40}),
        ({"b": "b.0.x b.0.y b.1.x b.1.y"}, "b.0", {"coarser": 20}),
        ({"a__x": "a.x", "rest": "a.y"}, "a", {"finer": 10, "resident": 10}),
        ({"rest": "a.x a.y"}, "a", {"resident": 20}),
        ({"c": "c.x c.y"}, "a", {"missed": 20}),
        ({"a__x": "a.x", "c": "c.x"}, "a", {"finer": 10, "missed": 10}),
    ],
)
def test_each_byte_of_a_labelled_block_gets_one_verdict(
    units: dict[str, str], label: str, expected: dict[str, int]
) -> None:
    counts, _ = compare(tree(**BIG, **units), [label], STATE)
    assert {kind: size for kind, size in counts.items() if size and kind != "labelled"} == expected
    assert counts["labelled"] == sum(expected.values())


def test_dividing_a_labelled_block_above_the_limit_is_exact() -> None:
    counts, reasons = compare(tree(big__x="big.x", big__y="big.y", a="a.x a.y"), ["big", "a"], STATE)
    assert (counts["exact"], counts["labelled"], reasons) == (420, 420, {})


def test_a_wrapper_that_holds_the_same_tensors_is_the_same_block() -> None:
    state = {"layers.0.block.x": 10, "layers.1.block.x": 10}
    units = [
        Unit(
            path=f"layers.{i}",
            class_name="",
            kind="block",
            group="layers",
            tensors=(TensorInfo(name=name, size_bytes=10),),
        )
        for i, name in enumerate(state)
    ]
    counts, _ = compare(BlockTree(units=tuple(units)), ["layers.0.block", "layers.1.block"], state)
    assert counts["exact"] == 20


def test_reasons_name_the_kind_of_block_with_its_share() -> None:
    _, reasons = compare(tree(b="b.0.x b.0.y b.1.x b.1.y", **BIG), ["b.0", "b.1"], STATE)
    assert reasons == {"b.* coarser": 1.0}


def one_score(name: str, exact: int, finer: int, missed: int = 0) -> Score:
    return Score(
        family="comfy", name=name, labelled=100, exact=exact, finer=finer, missed=missed, reasons={"b.* finer": 0.1}
    )


def test_the_promise_is_95_and_97_percent_and_nothing_missed() -> None:
    good = [one_score(f"m{index}", 100, 0) for index in range(97)]
    assert holds([*good, *(one_score("fine", 90, 5) for _ in range(3))], "comfy")
    assert not holds([*good[:94], *(one_score("fine", 90, 10) for _ in range(6))], "comfy")
    assert not holds([*good[:96], *(one_score("coarse", 50, 0) for _ in range(4))], "comfy")
    assert not holds([*good, one_score("hole", 99, 0, missed=1)], "comfy")


def test_the_table_lists_every_model_that_is_not_exact() -> None:
    text = render([one_score("good", 100, 0), one_score("fine", 90, 10)])
    assert re.search(r"^comfy +2 +1 50\.0% +2 100\.0% ", text, re.MULTILINE)
    assert "comfy fine: exact 90.0%, in reach 100.0%: b.* finer 10.0%" in text
    assert "comfy good" not in text


def toy_oracle(label_count: int) -> Oracle:
    def build() -> nn.Module:
        blocks = [nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)) for _ in range(10)]
        return nn.ModuleDict({"layers": nn.ModuleList(blocks), "head": nn.Linear(8, 8)})

    def paths(model: nn.Module) -> list[str]:
        return [path for path, module in model.named_modules() if isinstance(module, nn.Sequential)]

    return Oracle(
        family="comfy", name="toy", label_count=label_count, parameter_count=0, build=build, label_paths=paths
    )


def test_a_model_is_scored_from_end_to_end() -> None:
    result = score(toy_oracle(10), repeats=1)
    assert (result.exact_share, result.is_exact, result.is_in_reach, result.units) == (1.0, True, True, 11)
    assert result.same_from_names
    assert result.milliseconds > 0


def test_facts_of_another_version_are_reported_instead_of_scored() -> None:
    with pytest.raises(
        LookupError, match="comfy toy: 12 labelled blocks are known, this model has 10; the library is another"
    ):
        score(toy_oracle(12))


def test_the_command_prints_a_table_or_json_and_says_by_its_exit_whether_the_promise_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(score_discovery, "score_family", lambda family: [one_score("only", 100, 0)])
    assert main(["--family", "comfy"]) == 0
    assert capsys.readouterr().out.startswith("family")
    monkeypatch.setattr(score_discovery, "score_family", lambda family: [one_score("only", 10, 0)])
    assert main(["--family", "comfy", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["exact"] == 10


@pytest.mark.parametrize("family", FAMILIES)
def test_the_facts_can_be_read_without_the_libraries(family: str) -> None:
    oracles = load(family)
    assert len(oracles) >= 44
    assert all(oracle.label_count > 0 and oracle.parameter_count > 0 for oracle in oracles)
