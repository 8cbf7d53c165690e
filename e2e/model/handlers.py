"""Handlers to try an actor with: what a model does to its memory, its time and its replies.

Each takes a message and returns its result. An actor has one handler; `call` is the one that can
be any of them: `{"payload": {"call": "allocate", "bytes": 1024}}`.
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
    """The payload, as it came."""
    return message["payload"]


def fan_out(message: Message) -> list[dict[str, int]]:
    """`count` results of one message."""
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
    """`count` results, one by one; fails before the one of number `fails`, if that is given."""
    for part in range(message["payload"]["count"]):
        if part == message["payload"].get("fails"):
            raise ValueError(f"part {part} cannot be made")
        yield {"part": part}


def whoami(message: Message) -> dict[str, Any]:
    """Which interpreter and user this is, and as which process."""
    return {
        "python": ".".join(map(str, sys.version_info[:2])),
        "executable": sys.executable,
        "user": os.getuid(),
        "is_process_1": os.getpid() == 1,
    }


def allocate(message: Message) -> dict[str, int]:
    """Hold `bytes` of GPU memory, in `pieces` (1) tensors, until the call returns or fails."""
    pieces = message["payload"].get("pieces", 1)
    size = message["payload"]["bytes"] // pieces
    tensors: list[torch.Tensor] = []
    for _ in range(pieces):  # a comprehension would drop the first ones when the next one fails
        tensors.append(torch.empty(size, dtype=torch.uint8, device="cuda"))  # noqa: PERF401
    return {"tensors": len(tensors), "allocated": torch.cuda.memory_allocated()}


def stats(message: Message) -> dict[str, Any]:
    """What the GPU has in use and cached, and who has called what. Changes nothing."""
    return {
        "pid": os.getpid(),
        "initialized": torch.cuda.is_initialized(),
        "memory": torch.cuda.memory_stats(),
        "calls": dict(torch.cuda.calls),
    }


def chained(message: Message) -> dict[str, int]:
    """As `allocate`, in a program that raises an error of its own when that fails."""
    try:
        return allocate(message)
    except torch.OutOfMemoryError as error:
        raise RuntimeError("this batch is too large") from error


class Batch:
    """Work in progress that an exception takes along."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []

    def load(self, size: int) -> None:
        """Fill the GPU; an exception's frames refer to `self`, which refers to the tensors."""
        while True:
            self.tensors.append(torch.empty(size, dtype=torch.uint8, device="cuda"))


def in_frames(message: Message) -> None:
    """Fill the GPU with pieces of `bytes` that only frames of the exception lead to."""
    try:
        Batch().load(message["payload"]["bytes"])
    finally:
        time.sleep(0)  # a frame that is left by the exception, not by a return


def beside(message: Message) -> int:
    """Take `bytes` for a moment as libraries beside torch do: not from torch's cache."""
    torch.cuda.device_malloc(message["payload"]["bytes"])
    torch.cuda.device_free(message["payload"]["bytes"])
    return int(message["payload"]["bytes"])


def hog(message: Message) -> int:
    """Use `bytes` of the host's memory."""
    return len(b"x" * message["payload"]["bytes"])


def assert_on_device(message: Message) -> None:
    """Look beyond a tensor's end: the context is lost with it."""
    torch.empty(4)[4]
    torch.cuda.synchronize()


def crash(message: Message) -> None:
    """End the process as a bug in native code does."""
    ctypes.string_at(0)


HANDLERS = {
    handler.__name__: handler
    for handler in (
        echo, fan_out, slow, stream, whoami, allocate, chained, in_frames, beside, hog,
        assert_on_device, crash, stats,
    )
}  # fmt: skip


def call(message: Message) -> Any:
    """The handler that the payload names in `call`; `later` needs an actor of its own."""
    return HANDLERS[message["payload"]["call"]](message)
