"""A stand-in for torch: tensors without contents on a GPU without a chip.

Only what concerns memory is here, under the real names and with the real errors, so that a
cluster without a GPU can show what happens when one is full. GPU_MEMORY is its size in bytes.
"""

from __future__ import annotations

import math
import weakref
from types import SimpleNamespace

from . import cuda
from ._allocator import AcceleratorError, OutOfMemoryError

__all__ = ["AcceleratorError", "OutOfMemoryError", "Tensor", "cuda", "dtype", "empty"]
__version__ = "0+mock"

# Every real torch can be asked for Apple's GPU.
backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False))


class dtype:  # noqa: N801
    """A type of elements."""

    def __init__(self, name: str, itemsize: int) -> None:
        self.name = name
        self.itemsize = itemsize

    def __repr__(self) -> str:
        return f"torch.{self.name}"


uint8 = dtype("uint8", 1)
float16 = dtype("float16", 2)
float32 = dtype("float32", 4)


class Tensor:
    """Holds its memory until nobody refers to it any more."""

    def __init__(self, shape: tuple[int, ...], dtype: dtype) -> None:
        self.shape = shape
        self.dtype = dtype
        self.device = "cuda:0"
        gpu = cuda._initialized()
        weakref.finalize(self, gpu.free, gpu.allocate(self.nbytes)).atexit = False

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel() * self.dtype.itemsize

    def __getitem__(self, index: int) -> None:
        """Read an element, of which there are none: an index beyond the end is noticed by the
        device, and by the program at its next call.
        """
        if not -self.shape[0] <= index < self.shape[0]:
            cuda._lose_context()

    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def empty(*size: int, dtype: dtype = float32, device: str = "cuda") -> Tensor:
    """A new tensor; there is no other device than the GPU."""
    if device not in {"cuda", "cuda:0"}:
        raise NotImplementedError(f"this stand-in has no device {device!r}")
    return Tensor(size, dtype)
