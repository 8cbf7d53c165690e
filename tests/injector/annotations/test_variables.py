"""Variables in an annotation."""

import json
import os

import jsonschema
import pytest
from asya_injector.annotations.formats import MAX_ANNOTATIONS
from asya_injector.annotations.variables import parse_variables, variables
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "40"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        (" \n", {}),
        ("A=1", {"A": "1"}),
        ("A=1, B=2\n", {"A": "1", "B": "2"}),
        (" A = 1 ,B= x y ", {"A": "1", "B": "x y"}),
        ('A="a,b", B=" c "', {"A": "a,b", "B": " c "}),
        (r'A="say \"hi\"\n"', {"A": 'say "hi"\n'}),
        ('A="two\nlines"', {"A": "two\nlines"}),
        ("A=,B=", {"A": "", "B": ""}),
        ("A=b=c", {"A": "b=c"}),
        ("A=$(HOME) 'x'", {"A": "$(HOME) 'x'"}),
        ("a.b-c=é", {"a.b-c": "é"}),
    ],
)
def test_reads_variables(text: str, found: dict[str, str]) -> None:
    assert parse_variables(text) == found
    assert parse_variables(variables(text)) == found
    jsonschema.validate(text, {"type": "string", **variables.schema})


LONG = 250_000
WRONG = [
    "A", "=1", "A=1,", ",A=1", "A=1,,B=2", "A=1 B=2,C", "A=1,A=2", "1A=x", "A B=1", "A\0=1",
    'A="b', 'A="b"c', 'A=b"c"', r'A="\x"', r'A="\ud800"', r'A="\u0000"', "A=a\0",
    "A=" + "x" * MAX_ANNOTATIONS,
    # Rejected in linear time.
    " " * LONG + "=", "A" + " " * LONG + '"', "A=" + " " * LONG + '"', "A=x" + " " * LONG + '"',
    'A="' + "\\" * (LONG + 1), "A" * LONG,
]  # fmt: skip


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_rejects_what_could_be_read_in_two_ways(text: str) -> None:
    with pytest.raises(ValueError, match=r"^NAME=value pairs separated by commas, each name once"):
        parse_variables(text)


NAMES = st.text("Az_.-", min_size=1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@settings(max_examples=EXAMPLES)
@given(st.dictionaries(NAMES, TEXTS))
def test_any_text_can_be_quoted(expected: dict[str, str]) -> None:
    text = ",".join(f"{name}={json.dumps(value)}" for name, value in expected.items())
    assert parse_variables(text) == expected
    assert parse_variables(variables(text)) == expected


@settings(max_examples=EXAMPLES)
@given(st.text(st.sampled_from('A=", \\\n1é')))
def test_any_text_is_read_or_rejected(text: str) -> None:
    try:
        found = parse_variables(text)
    except ValueError:
        return
    assert parse_variables(variables(text)) == found
    assert variables(variables(text)) == variables(text)
