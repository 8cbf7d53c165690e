"""The handlers of a pipeline: one for batches, and one for single messages."""

import pathlib
import time
from typing import Any

STATE = pathlib.Path("/state")  # survives a restart of the container


def first(messages: "list[dict[str, Any]]") -> "list[Any]":
    """The payload of each; poison fails. A message that exhausts the memory does it only once."""
    time.sleep(0.02)
    results: list[Any] = []
    for message in messages:
        payload = message["payload"]
        if "exhaust" in payload:
            exhaust_once(str(payload["id"]))
        results.append(ValueError("poison") if payload.get("poison") else payload)
    return results


def second(message: "dict[str, Any]") -> Any:
    """The payload."""
    return message["payload"]


def exhaust_once(name: str) -> None:
    """Use memory until the kernel ends the process, unless it has done so for this message."""
    marker = STATE / name
    if not marker.exists():
        marker.touch()
        pieces = []
        while True:
            pieces.append(b"x" * (10 << 20))
