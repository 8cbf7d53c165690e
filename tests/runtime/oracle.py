"""What a stream of bytes must be answered with: the contract once more, as a pure function.

`runtime/README.md` in some fifty lines, written without a look at the runtime: fuzz and the
stateful test compare each reply with what is said here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
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


def finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError("number too large for a double")
    return float(text)


def with_attachments(text: str, rest: bytes) -> Any:
    """Decode JSON that stands before a zero byte, and `rest` behind it."""
    at = 0

    def read(pairs: list[tuple[str, Any]]) -> Any:
        nonlocal at
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("twice")
        if [key for key, _ in pairs] != ["$bytes"]:
            return dict(pairs)
        size = pairs[0][1]
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest) - at:
            raise ValueError("not so many bytes")
        at += size
        return rest[at - size : at]

    decoder = json.JSONDecoder(object_pairs_hook=read, parse_float=finite, parse_constant=not_json)
    message = decoder.decode(text)
    if at < len(rest):
        raise ValueError("more bytes")
    return message


def reply_with(payload: object) -> bytes:
    """Give the reply to a client that reads attachments."""
    pieces: list[bytes] = []

    def attach(value: object) -> object:
        assert isinstance(value, bytes)
        pieces.append(value)
        return {"$bytes": len(value)}

    body = encoded(payload, attach)
    if not pieces:
        return body
    while len(body) % 16 < 15:
        body += b" "
    return body + b"\0" + b"".join(pieces)


def encoded(payload: object, default: Callable[[object], object] | None = None) -> bytes:
    reply = {"status": "ok", "result": payload}
    return json.dumps(reply, separators=(",", ":"), default=default).encode()


def is_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(is_finite, value.values()))
    return all(map(is_finite, value)) if isinstance(value, list) else True


def reply_to(body: bytes) -> Expected:
    """Say what one message must be answered with."""
    head, zero, rest = body.partition(b"\0")
    try:
        text = head.decode("utf-8")
        message = with_attachments(text, rest) if zero else DECODER.decode(text)
        if not is_finite(message):
            raise ValueError("number too large for a double")
        if not isinstance(message, dict):
            raise ValueError("the message is not a JSON object")
        payload = message.get("payload")
        if not isinstance(payload, dict):
            raise ValueError('the message has no "payload" that is an object')
    except (ValueError, RecursionError) as problem:
        before = "in the JSON before the zero byte: " if zero else ""
        return error("invalid_json", before, type(problem).__name__)
    deed = payload.get("do")
    if isinstance(deed, str) and deed in DEEDS:
        return error(*DEEDS[deed])
    return reply_with(payload) if zero else encoded(payload)


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
