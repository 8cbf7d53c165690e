"""Messages as they travel: JSON, and bytes attached to it. Pure functions.

The body of a queue's message and the frames of the socket have one form: JSON; with attachments, a
zero byte follows, and then the bytes that the objects `{"$bytes": n}` of the JSON stand for.
"""

import json
from collections.abc import Iterator
from typing import Any

ZERO = b"\0"
JSON, WITH_BYTES = "application/json", "application/x-asya-message"
LONGEST_NAME = 255  # bytes of a queue's name
ALIGNMENT = 16  # bytes; where the attachments start, so that the actor can compute on them in place


def decode(message: bytes) -> Any:
    """The message as Python objects, with `memoryview`s of its attachments."""
    text, zero, attached = message.partition(ZERO)
    if not zero:
        return json.loads(text)
    left = memoryview(attached)

    def attach(item: dict[str, Any]) -> Any:
        nonlocal left
        if item.keys() != {"$bytes"}:
            return item
        size = item["$bytes"]
        found, left = left[:size], left[size:]
        return found

    return json.loads(text, object_hook=attach)


def encode(message: Any) -> bytes:
    """The inverse of `decode`."""
    attached: list[bytes] = []

    def detach(item: Any) -> dict[str, int]:
        attached.append(item)
        return {"$bytes": len(item)}

    text = json.dumps(message, default=detach, ensure_ascii=False).encode("utf-8", "surrogatepass")
    if not attached:
        return text
    return b"".join([text.ljust(len(text) + -(len(text) + 1) % ALIGNMENT), ZERO, *attached])


def content_type(body: bytes) -> str:
    """The content type of an encoded message."""
    return WITH_BYTES if ZERO in body else JSON


def to_frame(body: bytes) -> bytes:
    """The frame for a body. A zero byte tells the actor that its reply may have attachments."""
    return body if ZERO in body or b'"$bytes"' in body else body + ZERO


def read_reply(frame: bytes) -> dict[str, Any]:
    """A reply of the actor; raises ValueError if it is not of the protocol."""
    try:
        reply = decode(frame)
        needed = {"result"} if reply["status"] == "ok" else {"error", "severity", "message"}
        if needed <= reply.keys():
            return dict(reply)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        pass
    raise ValueError(f"the actor's reply is not of the protocol: {frame[:100]!r}")


def forward(body: bytes, result: Any, last: str) -> Iterator[tuple[str, bytes]]:
    """The messages that follow from a result, each with its queue; a list is a fan-out.

    body: the message that was answered. last: the queue of messages without a route, and of those
    at its end. Raises ValueError if a route cannot be followed.
    """
    message = decode(body)
    for item in result if isinstance(result, list) else [result]:
        if item is not None:
            # A handler that wants to change the route returns a whole message.
            is_whole = isinstance(item, dict) and {"payload", "route"} <= item.keys()
            queue, following = advance(item if is_whole else {**message, "payload": item})
            if queue or last:
                yield queue or last, encode(following)


def advance(message: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The queue after `current` in the route, and the message for it; no queue at its end."""
    route = message.get("route")
    if route is None:
        return "", message
    try:
        actors, following = route["actors"], route["current"] + 1
        is_end = following >= len(actors)
        queue = "" if is_end else actors[following]
        is_valid = isinstance(actors, list) and type(route["current"]) is int and following >= 1
    except (KeyError, TypeError, IndexError):
        is_valid = False
    if not is_valid or not isinstance(queue, str) or not (queue or is_end) or is_long(queue):
        raise ValueError(
            'route: not like {"actors": ["queue", "next-queue"], "current": 0}: '
            + json.dumps(route, default=repr)[:200]
        )
    return queue, {**message, "route": {**route, "current": following}}


def is_long(queue: str) -> bool:
    """Whether no queue can have this name."""
    return len(queue.encode(errors="replace")) > LONGEST_NAME
