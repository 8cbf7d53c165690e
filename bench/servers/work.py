"""What every server does with a message. The runtime gets `predict` alone."""

import base64
import json
from typing import Any


def predict(message: dict[str, Any]) -> dict[str, Any]:
    """The handler: almost nothing, so that what is around it is measured."""
    return {"echo": message["payload"]}


def predict_base64(message: dict[str, Any]) -> dict[str, Any]:
    """The same for bytes in JSON: the handler needs them as bytes."""
    data = base64.b64decode(message["payload"]["data"])
    return {"echo": {"data": base64.b64encode(data).decode()}}


def reply(message: dict[str, Any]) -> dict[str, Any]:
    return {"status": "ok", "result": predict(message)}


def answer(body: bytes | bytearray) -> bytes:
    """The bytes of the reply to a request."""
    return json.dumps(reply(json.loads(body))).encode()
