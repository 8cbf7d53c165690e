"""Handlers to try an actor with: what a model does to its memory, its time and its replies.

Each takes a message and returns its result. An actor has one handler; `call` is the one that can
be any of them: `{"payload": {"call": "allocate", "bytes": 1024}}`.
"""

from __future__ import annotations

import os
import time
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


HANDLERS = {handler.__name__: handler for handler in (echo, fan_out, slow, allocate, stats)}


def call(message: Message) -> Any:
    """The handler that the payload names in `call`."""
    return HANDLERS[message["payload"]["call"]](message)
