"""Explanations in plain English."""

import pytest

from alloc_spec import AllocSyntaxError, explain, parse

ALL_OF_IT = "together they must hold the whole model; where one has '*', it takes the rest"


def lines(text: str) -> list[str]:
    return [line.strip() for line in explain(text).splitlines()]


@pytest.mark.parametrize(
    ("amount", "phrase"),
    [
        ("2.5gb", "2.5 GiB of the model"),
        ("25%", "25 % of the model"),
        ("0.05%", "0.05 % of the model"),
        ("0.5", "as much as goes into 50 % of its total memory"),
        ("free", "as much as goes into its free memory"),
        ("free-1gb", "as much as goes into its free memory, of which 1 GiB stay free"),
        ("auto", "what the planner decides, at most half its room if there is no planner"),
        ("*", "the rest"),
        ("5gb*", "the rest; more than 5 GiB is a warning"),
    ],
)
def test_each_kind_of_amount_has_a_phrase(amount: str, phrase: str) -> None:
    assert lines(f"cuda:0,{amount};cpu,1gb")[1] == f"1. cuda:0 holds {phrase}"


def test_the_first_line_is_the_canonical_text() -> None:
    assert lines("CUDA:0, 2560mb; cpu,*")[0] == "cuda:0,2.5gb;cpu,* means, along the model:"


def test_a_specification_is_explained_like_its_text() -> None:
    assert explain(parse("cuda:0,2gb;cpu,*")) == explain("cuda:0,2gb;cpu,*")


def test_normalised_shares_are_shown_with_their_parts() -> None:
    assert lines("cuda:0,8%;cuda:1,8%;cpu,4%")[1:] == [
        "1. cuda:0 holds 40 % of the model (8 of 20 parts)",
        "2. cuda:1 holds 40 % of the model (8 of 20 parts)",
        "3. cpu holds 20 % of the model (4 of 20 parts)",
    ]
    assert lines("cuda:0,75%;cpu,25%")[1:] == ["1. cuda:0 holds 75 % of the model", "2. cpu holds 25 % of the model"]


@pytest.mark.parametrize(
    ("text", "notes"),
    [
        ("cuda:0,2gb;cpu,*", []),
        ("cuda:0,2gb", ["what is left goes to cpu"]),
        ("cpu,2gb", ["what is left goes to the device that computes, if that is another one"]),
        ("cpu,2gb#cuda:0", ["cuda:0 computes", "what is left goes to cuda:0"]),
        (
            "cpu,2gb#cpu",
            ["cpu computes", ALL_OF_IT],
        ),
        ("cpu,0.5", [ALL_OF_IT]),
        ("cpu,0.5;mps,2gb", [ALL_OF_IT]),
        ("cpu,50%", []),
    ],
)
def test_where_the_rest_goes_is_said(text: str, notes: list[str]) -> None:
    assert [line for line in lines(text)[1:] if line[0] not in "123"] == notes


def test_controls_are_explained() -> None:
    assert explain("#cuda:0;4;cuda:1,cpu") == (
        "#cuda:0;4;cuda:1,cpu means, along the model:\n"
        "  1. cuda:0 holds the rest\n"
        "  2. cuda:1 holds its part of the 4 GiB that move; donors are filled in this order\n"
        "  3. cpu holds its part of the 4 GiB that move; donors are filled in this order\n"
        "  cuda:0 computes"
    )


def test_what_cannot_be_read_cannot_be_explained() -> None:
    with pytest.raises(AllocSyntaxError):
        explain("garbage")
