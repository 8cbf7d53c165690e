"""Where files go, by their type."""

from typing import Any

SHELVES = {"code": "shelf-code", "text": "shelf-text", "document": "shelf-text"}
OTHERS = "shelf-others"


def sort(message: dict[str, Any]) -> list[dict[str, Any]]:
    """A handler that fans out: the file to the queue for its type, and a note to the next queue.

    A result with a route of its own is a whole message.
    """
    file = message["payload"]
    shelf = SHELVES.get(file["group"], OTHERS)
    return [
        {"payload": file, "route": {"actors": ["sort", shelf], "current": 0}},
        {"name": file["name"], "type": file["type"], "size": len(file["data"]), "shelf": shelf},
    ]
