"""Handlers for tests: use of memory, duration, kinds of replies, and failures.

Each takes a message and returns its result. `call` calls any of the others:
`{"payload": {"call": "allocate", "bytes": 1024}}`.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

Message = dict[str, Any]


def echo(message: Message) -> Any:
    """The payload."""
    return message["payload"]


def fan_out(message: Message) -> list[dict[str, int]]:
    """A list of `count` results."""
    return [{"part": part} for part in range(message["payload"]["count"])]


def slow(message: Message) -> Any:
    """The payload, after `seconds`."""
    time.sleep(message["payload"]["seconds"])
    return message["payload"]


async def later(message: Message) -> Any:
    """The payload, after `seconds` on the event loop."""
    await asyncio.sleep(message["payload"]["seconds"])
    return message["payload"]


def stream(message: Message) -> Iterator[dict[str, int]]:
    """`count` results, one by one; fails before result number `fails`, if given."""
    for part in range(message["payload"]["count"]):
        if part == message["payload"].get("fails"):
            raise ValueError(f"part {part} failed")
        yield {"part": part}


def whoami(message: Message) -> dict[str, Any]:
    """The interpreter, the user, whether this is process 1, and the variable TOKEN."""
    return {
        "python": ".".join(map(str, sys.version_info[:2])),
        "executable": sys.executable,
        "user": os.getuid(),
        "is_process_1": os.getpid() == 1,
        "is_child_of_process_1": os.getppid() == 1,
        "token": os.environ.get("TOKEN"),
    }


def allocate(message: Message) -> dict[str, int]:
    """Use `bytes` of GPU memory in `pieces` (1) tensors until the call returns or fails."""
    pieces = message["payload"].get("pieces", 1)
    size = message["payload"]["bytes"] // pieces
    tensors: list[torch.Tensor] = []
    for _ in range(pieces):  # a comprehension would drop all tensors when one fails
        tensors.append(torch.empty(size, dtype=torch.uint8, device="cuda"))  # noqa: PERF401
    return {"tensors": len(tensors), "allocated": torch.cuda.memory_allocated()}


def stats(message: Message) -> dict[str, Any]:
    """The memory of the GPU in use and cached, and the number of calls by function."""
    return {
        "pid": os.getpid(),
        "initialized": torch.cuda.is_initialized(),
        "memory": torch.cuda.memory_stats(),
        "calls": dict(torch.cuda.calls),
    }


def chained(message: Message) -> dict[str, int]:
    """Like `allocate`, with another exception raised from its failure."""
    try:
        return allocate(message)
    except torch.OutOfMemoryError as error:
        raise RuntimeError("this batch is too large") from error


class Batch:
    """An object that only the frames of an exception refer to."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []

    def load(self, size: int) -> None:
        """Fill the GPU; frames of the exception refer to the tensors through `self`."""
        while True:
            self.tensors.append(torch.empty(size, dtype=torch.uint8, device="cuda"))


def in_frames(message: Message) -> None:
    """Fill the GPU with tensors of `bytes` that only frames of the exception refer to."""
    try:
        Batch().load(message["payload"]["bytes"])
    finally:
        time.sleep(0)  # keeps this frame in the traceback


def beside(message: Message) -> int:
    """Use `bytes` of the GPU like another library, not from torch's cache."""
    torch.cuda.device_malloc(message["payload"]["bytes"])
    torch.cuda.device_free(message["payload"]["bytes"])
    return int(message["payload"]["bytes"])


def hog(message: Message) -> int:
    """Use `bytes` of the host's memory."""
    return len(b"x" * message["payload"]["bytes"])


def pile(message: Message) -> int:
    """Use `bytes` of the host's memory, in pieces of 10 MiB."""
    pieces = [b"x" * (10 << 20) for _ in range(message["payload"]["bytes"] // (10 << 20))]
    return len(pieces)


def assert_on_device(message: Message) -> None:
    """Read beyond the end of a tensor, which loses the context."""
    torch.empty(4)[4]
    torch.cuda.synchronize()


def hang(message: Message) -> None:
    """Never return: `how` is sleep, spin, or keep, which keeps the interpreter's lock."""
    if message["payload"]["how"] == "sleep":
        time.sleep(1e9)
    while message["payload"]["how"] == "spin":
        pass
    ctypes.PyDLL(None).pause()


def batch(messages: list[Message]) -> list[dict[str, int]]:
    """`number` of each, and the size of the batch; use `bytes` of the GPU for each of them.

    The call fails if one of the messages has `fails`.
    """
    tensors = [
        torch.empty(message["payload"].get("bytes", 1), dtype=torch.uint8, device="cuda")
        for message in messages
    ]
    if any("fails" in message["payload"] for message in messages):
        raise ValueError("a message of this batch is bad")
    return [{"number": message["payload"]["number"], "batch": len(tensors)} for message in messages]


def crash(message: Message) -> None:
    """End the process with a segmentation fault."""
    ctypes.string_at(0)


HANDLERS = {
    handler.__name__: handler
    for handler in (
        echo, fan_out, slow, stream, whoami, allocate, chained, in_frames, beside, hog, pile,
        assert_on_device, crash, stats, hang,
    )
}  # fmt: skip


def call(message: Message) -> Any:
    """Call the handler that `call` in the payload names; not `later`, which is asynchronous."""
    return HANDLERS[message["payload"]["call"]](message)
