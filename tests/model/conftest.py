"""The modules of the model image, imported again for each test."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

MODEL = Path(__file__).parents[2] / "e2e" / "model"
GIB = 1 << 30


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in {"torch", "handlers"}]:
        del sys.modules[name]


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The fake torch, with an unused GPU of 4 GiB."""
    monkeypatch.syspath_prepend(MODEL)
    monkeypatch.setenv("GPU_MEMORY", str(4 * GIB))
    forget()
    yield importlib.import_module("torch")
    forget()


@pytest.fixture
def handlers(torch: ModuleType) -> ModuleType:
    """The handlers of the image, with that GPU."""
    return importlib.import_module("handlers")
