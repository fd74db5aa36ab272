"""Corrections: small edits that turn a text which cannot be read into one that can."""

import pytest

from alloc_spec import AllocSyntaxError, parse, parse_wire


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("cuda:0,2gb,cpu,*", "cuda:0,2gb;cpu,*"),
        ("cuda:0=4gb;cpu=*", "cuda:0,4gb;cpu,*"),
        ("cuda:0:4gb|cpu=*", "cuda:0,4gb;cpu,*"),
        ("cuda:0 2gb", "cuda:0,2gb"),
        ("cuda:0 , 2 gb\ncpu , *", "cuda:0,2gb;cpu,*"),
        ("cuda:0\uff0c2gb\uff1bcpu\uff0c*", "cuda:0,2gb;cpu,*"),
        ('"cuda:0,2gb;cpu,*"', "cuda:0,2gb;cpu,*"),
        ("cuda:0,2gb;cpu", "cuda:0,2gb;cpu,*"),
        ("cuda:0,2gb;cpu,", "cuda:0,2gb;cpu,*"),
        ("cuda:0", "cuda:0,*"),
        ("cuda:00,2gb", "cuda:0,2gb"),
        ("cuda:000,2gb", "cuda:0,2gb"),
        ("cuda:0,2gbs", "cuda:0,2gb"),
        ("cuda:0,5,5g", "cuda:0,5.5g"),
        ("cuda:0,-25%;cpu,75%", "cuda:0,25%;cpu,75%"),
        ("cuda:0,+25%;cpu,75%", "cuda:0,25%;cpu,75%"),
        ("cuda:0,5.0;cpu,*", "cuda:0,5.0gb;cpu,*"),
        ("cuda:0,free-1;cpu,*", "cuda:0,free-1gb;cpu,*"),
        ("cuda:0,fre;cpu,*", "cuda:0,free;cpu,*"),
        ("cuda:0,~2gb;cpu,*", "cuda:0,2gb;cpu,*"),
        ("(cuda:0,2gb)", "cuda:0,2gb"),
        ("#cuda:0;4gb;cpu", "#cuda:0;4;cpu"),
        ("#cuda:0,4;cpu", "#cuda:0;4;cpu"),
        ("#cuda:0;4;cpu;cuda:1", "#cuda:0;4;cpu,cuda:1"),
        ("cpu,1gb#cuda:0;4;cpu#", "cpu,1gb#cuda:0;4;cpu"),
    ],
)
def test_a_small_mistake_is_corrected(text: str, suggestion: str) -> None:
    with pytest.raises(AllocSyntaxError) as caught:
        parse(text)
    assert caught.value.suggestion == suggestion
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(f'did you mean "{suggestion}"?')
    parse(suggestion)


@pytest.mark.parametrize(
    "text",
    [
        "garbage",
        "50%",
        "cuda:0,nan",
        "cuda:0,4gigabanana",
        "#",
        "cpu,1gb;cpu,2gb",
        "cuda:0,0%",
        "cuda:x,1gb",
        "!?!?!?!?!?",
    ],
)
def test_what_needs_a_decision_is_not_guessed(text: str) -> None:
    with pytest.raises(AllocSyntaxError) as caught:
        parse(text)
    assert caught.value.suggestion is None
    assert "did you mean" not in str(caught.value)


def test_a_correction_of_the_wire_form_is_of_the_wire_form() -> None:
    with pytest.raises(AllocSyntaxError) as caught:
        parse_wire("cuda:0,2gb,cpu,*#cuda:0;4;cpu")
    assert caught.value.suggestion == "cuda:0,2gb;cpu,*#cuda:0;4;cpu"
    parse_wire(caught.value.suggestion)


def test_a_text_of_200_characters_is_the_longest_that_is_corrected() -> None:
    for length, suggestion in ((200, "cuda:0,2gb;cpu,*"), (201, None)):
        with pytest.raises(AllocSyntaxError) as caught:
            parse("cuda:0=2gb;cpu,*".ljust(length))
        assert caught.value.suggestion == suggestion


def test_the_search_gives_up_after_a_few_edits() -> None:
    several = ";".join(f"cuda:{index}=1gb" for index in range(6))
    with pytest.raises(AllocSyntaxError) as caught:
        parse(several)
    assert caught.value.suggestion == several.replace("=", ",")
    too_many = ";".join(f"cuda:{index}=1gb" for index in range(7))
    with pytest.raises(AllocSyntaxError) as caught:
        parse(too_many)
    assert caught.value.suggestion is None
