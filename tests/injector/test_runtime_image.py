"""References of images that pods mount, by the chart's schema and by the injector."""

import json
import re
from pathlib import Path

import pytest
from asya_injector.runtime_image import RuntimeImage

SCHEMA = Path(__file__).parents[2] / "chart/values.schema.json"
DIGEST = "@sha256:" + "0123456789abcdef" * 4
# Names as container runtimes read them, and whether they are valid.
NAMES = [
    ("app", True),
    ("team/app", True),
    ("a_b/c__d/e---f.g", True),
    ("registry.example.com/app", True),
    ("Registry.Example.com/app", True),
    ("localhost:5000/app", True),
    ("registry:5000/team/app", True),
    ("192.0.2.1:5000/app", True),
    ("[2001:db8::1]:5000/team/app", True),
    ("[::1]/app", True),
    ("App", False),
    ("registry.example.com/Team/app", False),
    ("registry.example.com/", False),
    ("registry.example.com/team/", False),
    ("registry.example.com//app", False),
    ("https://registry.example.com/app", False),
    ("user@registry.example.com/app", False),
    ("a..b/app", False),
    ("a-/app", False),
    ("team/a..b", False),
    ("team/-app", False),
    ("team/app-", False),
    ("team/a___b", False),
    ("team/../app", False),
    ("::1/app", False),
    ("[::1/app", False),
    ("app ", False),
    (" app", False),
    ("app\n", False),
    ("$(APP)", False),
    ("\u0430pp", False),
]
ENDS = [
    ("", True),
    (":1", True),
    (":v1.0.0-rc.1_x", True),
    (DIGEST, True),
    (f":1{DIGEST}", True),
    (":", False),
    (":-1", False),
    (":1+build", False),
    (f":{'1' * 129}", False),
    (DIGEST[:-1], False),
    (DIGEST.upper(), False),
    (f"{DIGEST}:1", False),
]


@pytest.mark.parametrize(("name", "is_valid"), NAMES)
def test_a_name_is_valid_if_container_runtimes_accept_it(name: str, is_valid: bool) -> None:
    pattern = json.loads(SCHEMA.read_text())["definitions"]["repository"]["pattern"]
    for end in ("", ":1", DIGEST):
        assert is_reference(name + end) is is_valid
    # In the chart, `$` ends the text, not a line.
    assert bool(re.search(pattern.replace("$", r"\Z"), name)) is is_valid


@pytest.mark.parametrize(("end", "is_valid"), ENDS)
def test_a_reference_may_end_with_a_tag_and_a_digest(end: str, is_valid: bool) -> None:
    assert is_reference(f"registry.example.com:5000/team/app{end}") is is_valid


def is_reference(text: str) -> bool:
    try:
        RuntimeImage(text)
    except ValueError:
        return False
    return True
