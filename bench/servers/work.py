"""What each server does with a message, apart from moving its bytes. Ours gets `predict` alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any


def predict(message: dict[str, Any]) -> dict[str, Any]:
    """The handler: next to nothing, so that what is measured is what is around it."""
    return {"echo": message["payload"]}


def reply(message: dict[str, Any]) -> dict[str, Any]:
    return {"status": "ok", "result": predict(message)}


def answer(body: bytes | bytearray) -> bytes:
    """From the bytes of a request to the bytes of its reply."""
    return json.dumps(reply(json.loads(body))).encode()


def fast_answer() -> Callable[[bytes | bytearray], bytes]:
    """The same as a function with the fastest JSON library there is, which only this one loads."""
    import orjson  # type: ignore[import-not-found, unused-ignore]

    def answer(body: bytes | bytearray) -> bytes:
        encoded: bytes = orjson.dumps(reply(orjson.loads(body)))
        return encoded

    return answer
