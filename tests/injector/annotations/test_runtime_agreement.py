"""The table of annotations agrees with the runtime's settings."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from asya_injector.annotations.table import ENV, Annotation
from asya_injector.mutation.injection_record import SHARED_SOCKET_MODE
from hypothesis import given
from hypothesis import strategies as st

RUNTIME = Path(__file__).parents[3] / "runtime" / "asya_runtime.py"


def load() -> ModuleType:
    """Load the runtime file as a module; nothing in the project imports it by name."""
    spec = importlib.util.spec_from_file_location("asya_runtime_under_test", RUNTIME)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SAME = (
    "the default and the valid values must be the same in SETTINGS in runtime/asya_runtime.py and "
    "in TABLE in injector/asya_injector/annotations/table.py"
)
SETTINGS = {name: (default, parse) for name, default, parse in load().SETTINGS}


@pytest.mark.parametrize("entry", ENV, ids=lambda entry: entry.name)
def test_an_annotations_variable_exists_in_the_runtime_with_the_same_default(
    entry: Annotation,
) -> None:
    assert entry.env in SETTINGS, "add it to SETTINGS in runtime/asya_runtime.py"
    assert SETTINGS[entry.env][0] == (entry.default or ""), f"{entry.name}: {SAME}"


@pytest.mark.parametrize("entry", ENV, ids=lambda entry: entry.name)
def test_the_runtime_and_the_injector_accept_the_same_numbers(entry: Annotation) -> None:
    def accepts(parse: Callable[[str], object], text: str) -> bool:
        try:
            parse(text)
        except ValueError:
            return False
        return True

    for text in ("0", "1", "2", "1024", "1025", "16777216", "16777217", "-1", "1.5"):
        both = accepts(entry.parse, text), accepts(SETTINGS[entry.env or ""][1], text)
        assert both[0] == both[1], f"{entry.name}: {text}: {SAME}"


def test_the_runtime_accepts_the_socket_mode_that_the_injector_sets() -> None:
    assert SETTINGS[SHARED_SOCKET_MODE["name"]][1](SHARED_SOCKET_MODE["value"]) == 0o666


NUMBERS = st.integers(-2, 2**33).map(str) | st.floats().map(str)
WORDS = st.sampled_from(["true", "No", "stdlib", "auto", "a.b", "a.if.b", "/a/b", "/a/b.sock"])


@given(st.sampled_from(ENV), NUMBERS | WORDS | st.text(max_size=20))
def test_the_runtime_accepts_what_the_injector_accepts(entry: Annotation, text: str) -> None:
    try:
        canonical = entry.parse(text)
    except ValueError:
        return
    assert entry.env is not None
    try:
        SETTINGS[entry.env][1](canonical)
    except ValueError as error:
        raise AssertionError(f"{entry.name}: the runtime rejects {canonical!r}: {SAME}") from error
