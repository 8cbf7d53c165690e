"""The handler under load: answers with the message's id, after the time that it asks for."""

import time
from typing import Any


def answer(message: "dict[str, Any]") -> "dict[str, Any]":
    payload = message["payload"]
    if payload.get("say"):
        print("in hand:", payload["id"], flush=True)
    time.sleep(payload["seconds"])
    held = []
    while payload.get("eat"):
        held.append(b"x" * (8 << 20))
    return {"id": payload["id"]}
