"""A fake torch: tensors without contents, on a GPU without hardware.

It has the parts of torch that concern memory, with the original names and errors, so that tests
need no GPU. GPU_MEMORY is the size of the GPU's memory in bytes.
"""

from __future__ import annotations

import math
import weakref
from types import SimpleNamespace

from . import cuda
from ._allocator import AcceleratorError, OutOfMemoryError

__all__ = ["AcceleratorError", "OutOfMemoryError", "Tensor", "cuda", "dtype", "empty"]
__version__ = "0+fake"

# The runtime asks for Apple's GPU too.
backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False))


class dtype:  # noqa: N801
    """A type of elements."""

    def __init__(self, itemsize: int) -> None:
        self.itemsize = itemsize


uint8 = dtype(1)
float32 = dtype(4)


class Tensor:
    """Has its memory until the last reference to it is gone."""

    def __init__(self, shape: tuple[int, ...], dtype: dtype) -> None:
        self.shape = shape
        self.nbytes = math.prod(shape) * dtype.itemsize
        gpu = cuda._initialized()
        weakref.finalize(self, gpu.drop, gpu.allocate(self.nbytes)).atexit = False

    def __getitem__(self, index: int) -> None:
        """Read an element. The device notices an index beyond the end, and the next call fails."""
        if not -self.shape[0] <= index < self.shape[0]:
            cuda._lose_context()


def empty(*size: int, dtype: dtype = float32, device: str = "cuda") -> Tensor:
    """A new tensor; the GPU is the only device."""
    if device not in {"cuda", "cuda:0"}:
        raise NotImplementedError(f"the fake torch has no device {device!r}")
    return Tensor(size, dtype)
