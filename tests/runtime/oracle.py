"""What a stream of bytes must be answered with: the contract once more, as a pure function.

`runtime/README.md` in some fifty lines, written without a look at the runtime: fuzz and the
stateful test compare each reply with what is said here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

LIMIT = 100_000  # ASYA_MAX_MESSAGE_SIZE of the process that is asked
HANDLER = """
    def answer(message):
        payload = message["payload"]
        match payload.get("do"):
            case "memory": raise MemoryError("no")
            case "exit": raise SystemExit(3)
            case "interrupt": raise KeyboardInterrupt
            case "set": return {1}
            case "half": return half()
        return payload
    def half():
        yield 1
        raise ValueError("half way")
"""
# What the handler does when it is told to: (code, message, type)
DEEDS = {
    "memory": ("oom_error", "no", "MemoryError"),
    "exit": ("processing_error", "3", "SystemExit"),
    "interrupt": ("processing_error", "KeyboardInterrupt", "KeyboardInterrupt"),
    "set": ("processing_error", "result is not JSON-serializable at result: set; ", "TypeError"),
    "half": ("processing_error", "half way", "ValueError"),
}

# The reply as bytes; or the fields of an error, whose message may go on.
Expected = bytes | dict[str, Any]


def error(code: str, message: str, kind: str | None = None) -> dict[str, Any]:
    verdict: dict[str, Any] = {"severity": "fatal"}
    if code == "oom_error":
        verdict = {"severity": "recoverable", "retry_after": 30}
    reply = {"status": "error", "error": code, "message": message} | verdict
    return reply | ({"type": kind} if kind else {})


def not_json(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


DECODER = json.JSONDecoder(parse_constant=not_json)


def is_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    return all(map(is_finite, value)) if isinstance(value, list) else True


def reply_to(body: bytes) -> Expected:
    """Say what one message must be answered with."""
    try:
        message = DECODER.decode(body.decode("utf-8"))
        if not is_finite(message):
            raise ValueError("number too large for a double")
        if not isinstance(message, dict):
            raise ValueError("the message is not a JSON object")
        payload = message.get("payload")
        if not isinstance(payload, dict):
            raise ValueError('the message has no "payload" that is an object')
    except (ValueError, RecursionError) as problem:
        return error("invalid_json", "", type(problem).__name__)
    deed = payload.get("do")
    if isinstance(deed, str) and deed in DEEDS:
        return error(*DEEDS[deed])
    return json.dumps({"status": "ok", "result": payload}, separators=(",", ":")).encode()


def replies(stream: bytes, ended: bool) -> Iterator[Expected]:
    """Say what the bytes of one connection must be answered with, in this order.

    `ended`: the client has closed its side, so that a frame cut short is an error.
    """
    at = 0
    while len(stream) - at >= 4:
        size = int.from_bytes(stream[at : at + 4], "big")
        body = stream[at + 4 : at + 4 + size]
        if len(body) < size:
            break
        at += 4 + size
        if size > LIMIT:
            yield error(
                "connection_error", f"message of {size} bytes exceeds the limit of {LIMIT} bytes"
            )
        else:
            yield reply_to(body)
    if ended and at < len(stream):
        yield error("connection_error", "connection closed ")


def agrees(reply: bytes, expected: Expected) -> bool:
    """Compare a reply with what was expected: good ones byte for byte, errors but for the text."""
    if isinstance(expected, bytes):
        return reply == expected
    got = json.loads(reply)
    if not isinstance(got, dict) or not isinstance(got.get("message"), str):
        return False
    begins = got["message"].startswith(expected["message"])
    return begins and got == expected | {"message": got["message"]}
