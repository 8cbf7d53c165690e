"""The handlers for batches on the page do what it says; missing frameworks have stand-ins."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.docs.pages import DOCS, blocks

BLOCKS = {
    block.name: block.text
    for block in blocks((DOCS / "handlers.md").read_text())
    if block.name.startswith("my_app/with_")
}
MESSAGES = [{"payload": {"row": [n, 1, 2, 3]}} for n in range(5)]


class Session:
    """A session of ONNX Runtime whose model sums up each row."""

    def __init__(self, path: str) -> None:
        assert path == "model.onnx"

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="rows")]

    def run(self, names: None, inputs: dict[str, Any]) -> list[Any]:
        assert inputs["rows"].dtype == np.float32
        return [inputs["rows"].sum(axis=1)]


class Tensor:
    """A tensor, as far as the page uses one."""

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = rows

    def cpu(self) -> Tensor:
        return self

    def tolist(self) -> list[float]:
        return [float(sum(row)) for row in self.rows]


def stand_ins() -> dict[str, ModuleType]:
    onnxruntime, torch = ModuleType("onnxruntime"), ModuleType("torch")
    vars(onnxruntime)["InferenceSession"] = Session
    model = SimpleNamespace(eval=lambda: lambda rows: rows)
    vars(torch).update(
        tensor=Tensor,
        jit=SimpleNamespace(load=lambda path: model),
        inference_mode=contextlib.nullcontext,
    )
    return {"onnxruntime": onnxruntime, "torch": torch}


def test_there_is_a_handler_for_each_framework() -> None:
    assert list(BLOCKS) == [f"my_app/with_{name}.py" for name in ("numpy", "onnxruntime", "torch")]


@pytest.mark.parametrize("name", BLOCKS)
def test_a_handler_returns_one_result_for_each_message(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, stand_in in stand_ins().items():
        monkeypatch.setitem(sys.modules, module, stand_in)
    namespace: dict[str, Any] = {"__name__": Path(name).stem}
    exec(compile(BLOCKS[name], name, "exec"), namespace)
    results = namespace["predict"](MESSAGES).tolist()
    weighted = [0 * n + 1 + 4 + 9 for n in range(5)]
    assert results == (weighted if "numpy" in name else [n + 6 for n in range(5)])
