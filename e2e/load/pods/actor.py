"""The handler: returns the message's id after the time that the message asks for."""

import time
from typing import Any


def answer(message: "dict[str, Any]") -> "dict[str, Any]":
    payload = message["payload"]
    if payload.get("announce"):
        print("received:", payload["id"], flush=True)
    time.sleep(payload["seconds"])
    memory = []
    while payload.get("exhaust"):
        memory.append(b"x" * (8 << 20))
    return {"id": payload["id"]}
