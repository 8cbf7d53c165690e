"""The handlers for bytes on the page do what it says; missing frameworks have stand-ins."""

from __future__ import annotations

import io
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.docs.pages import DOCS, blocks

BLOCKS = {
    block.name: block.text
    for block in blocks((DOCS / "handlers.md").read_text())
    if block.name.startswith("my_app/bytes_")
}


class Picture:
    """A picture, as far as the page uses one: its file is its size, then its pixels."""

    def __init__(self, file: io.BytesIO) -> None:
        self.size = tuple(file.read(2))

    def resize(self, size: tuple[int, int]) -> Picture:
        return Picture(io.BytesIO(bytes(size)))

    def save(self, file: io.BytesIO, form: str) -> None:
        file.write(form.encode() + bytes(self.size))


class Tensor:
    """A tensor, as far as the page uses one."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __mul__(self, factor: int) -> Tensor:
        return Tensor(self.array * np.float32(factor))

    def numpy(self) -> Any:
        return self.array


def stand_ins() -> dict[str, ModuleType]:
    pillow, torch = ModuleType("PIL"), ModuleType("torch")
    image = ModuleType("PIL.Image")
    vars(image)["open"], vars(pillow)["Image"] = Picture, image
    vars(torch).update(
        float32=np.float32, frombuffer=lambda data, dtype: Tensor(np.frombuffer(data, dtype))
    )
    return {"PIL": pillow, "PIL.Image": image, "torch": torch}


FLOATS = np.array([1, 2.5], np.float32)
EXAMPLES: dict[str, tuple[dict[str, object], dict[str, object]]] = {
    "my_app/bytes_numpy.py": (
        {"image": memoryview(bytes(range(6))), "shape": [2, 3]},
        {"shape": (2, 3), "image": bytes(range(255, 249, -1))},
    ),
    "my_app/bytes_pillow.py": (
        {"image": memoryview(bytes([30, 20, 9, 9]))},
        {"size": (30, 20), "thumbnail": b"PNG\2\2"},
    ),
    "my_app/bytes_torch.py": (
        {"row": memoryview(FLOATS.tobytes())},
        {"scores": (FLOATS * 2).tobytes()},
    ),
}


def test_the_page_has_these_examples() -> None:
    assert sorted(BLOCKS) == sorted(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_takes_and_returns_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, stand_in in stand_ins().items():
        monkeypatch.setitem(sys.modules, module, stand_in)
    payload, expected = EXAMPLES[name]
    namespace: dict[str, Any] = {}
    exec(BLOCKS[name], namespace)
    result = namespace["predict"]({"payload": payload})
    views = {key for key, value in result.items() if isinstance(value, memoryview)}
    assert all(result[key].c_contiguous for key in views)
    seen = {key: bytes(value) if key in views else value for key, value in result.items()}
    assert (seen, len(views)) == (expected, 1)
