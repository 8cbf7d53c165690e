"""A GPU of a given size, and torch's caching allocator.

It behaves like the original as far as tests can see. Memory of a dropped tensor stays reserved for
the next one. A request that does not fit first returns unused segments to the device, and then
tries again. A segment with any part in use is never returned.
"""

from __future__ import annotations

import threading
from collections import Counter, deque

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class OutOfMemoryError(RuntimeError):
    """The device is full."""


class AcceleratorError(RuntimeError):
    """A CUDA call failed outside of the allocator."""


for _error in (OutOfMemoryError, AcceleratorError):
    _error.__module__ = "torch"


class Block:
    """A part of a segment: used by one tensor, or free."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.in_use = False


class Gpu:
    """The memory: segments, which are lists of blocks, and what other libraries use."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.used_by_others = 0
        self.stats: Counter[str] = Counter()
        self._segments: list[list[Block]] = []
        self._lock = threading.RLock()
        # The garbage collector may finalize a tensor at any time, also during `allocate`: its block
        # waits here for the next operation.
        self._dropped: deque[Block] = deque()

    @property
    def allocated(self) -> int:
        """Bytes that tensors use."""
        with self._lock:
            self._collect()
            return sum(block.size for block in self._blocks() if block.in_use)

    @property
    def reserved(self) -> int:
        """Bytes that tensors use, or that are cached for the next ones."""
        with self._lock:
            return sum(block.size for block in self._blocks())

    @property
    def free(self) -> int:
        """Bytes of the device that nothing uses or caches."""
        return self.total - self.reserved - self.used_by_others

    def allocate(self, size: int) -> Block:
        """A block for a tensor; raises OutOfMemoryError without room."""
        wanted = max(512, _round_up(size, 512))
        with self._lock:
            self._collect()
            segment = self._find(wanted) or self._reserve(wanted)
            if segment is None:
                self.stats["num_alloc_retries"] += 1
                self.empty_cache()
                segment = self._reserve(wanted)
            if segment is None:
                self.stats["num_ooms"] += 1
                raise OutOfMemoryError(self._describe(size))
            self.stats["num_allocs"] += 1
            block = min(_fitting(segment, wanted), key=lambda block: block.size)
            if rest := block.size - wanted:
                segment.insert(segment.index(block) + 1, Block(rest))
            block.size, block.in_use = wanted, True
            return block

    def drop(self, block: Block) -> None:
        """The tensor of a block is gone; safe to call from a finalizer."""
        self._dropped.append(block)

    def empty_cache(self) -> None:
        """Return segments without a tensor to the device."""
        with self._lock:
            self._collect()
            self._segments = [s for s in self._segments if any(block.in_use for block in s)]

    def _blocks(self) -> list[Block]:
        return [block for segment in self._segments for block in segment]

    def _collect(self) -> None:
        """Free the blocks of dropped tensors, and join free neighbours."""
        while self._dropped:
            self._dropped.popleft().in_use = False
            self.stats["num_frees"] += 1
        for segment in self._segments:
            for left, right in zip(segment[-2::-1], segment[:0:-1], strict=True):
                if not left.in_use and not right.in_use:
                    left.size += right.size
                    segment.remove(right)

    def _find(self, wanted: int) -> list[Block] | None:
        """The segment with the smallest free block that is large enough."""
        sizes = [
            (block.size, index)
            for index, segment in enumerate(self._segments)
            for block in _fitting(segment, wanted)
        ]
        return self._segments[min(sizes)[1]] if sizes else None

    def _reserve(self, wanted: int) -> list[Block] | None:
        """A new segment, whose size depends on the request as in the original."""
        small = 2 * MIB if wanted <= MIB else 20 * MIB
        size = small if wanted < 10 * MIB else _round_up(wanted, 2 * MIB)
        if size > self.free:
            return None
        self._segments.append([Block(size)])
        return self._segments[-1]

    def _describe(self, size: int) -> str:
        allocated, reserved = self.allocated, self.reserved
        return (
            f"CUDA out of memory. Tried to allocate {_format(size)}. "
            f"GPU 0 has a total capacity of {_format(self.total)} "
            f"of which {_format(self.free)} is free. "
            f"Including non-PyTorch memory, this process has {_format(self.total - self.free)} "
            "memory in use. "
            f"Of the allocated memory {_format(allocated)} is allocated by PyTorch, "
            f"and {_format(reserved - allocated)} is reserved by PyTorch but unallocated. "
            "If reserved but unallocated memory is large try setting "
            "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  "
            "See documentation for Memory Management  "
            "(https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
        )


def _fitting(segment: list[Block], wanted: int) -> list[Block]:
    return [block for block in segment if not block.in_use and block.size >= wanted]


def _round_up(size: int, step: int) -> int:
    return -(-size // step) * step


def _format(size: int) -> str:
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size} bytes"
