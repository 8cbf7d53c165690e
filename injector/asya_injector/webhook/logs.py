"""The log: one JSON object a line, in ASCII, so that no text of a user's can forge a line."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

_NOT_SAID = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}
_encode = json.JSONEncoder(default=str).encode


class JsonLines(logging.Formatter):
    """Time, level, logger and message first, then what `extra` says, then the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{record.msecs:03.0f}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in record.__dict__.items() if key not in _NOT_SAID}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


def log_as_json(level: str) -> None:
    """Write this level and above to standard error. level: as `logging` names it."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # One line a decision is ours; these would say the same again.
    for noisy in ("kopf", "aiohttp.access", "urllib3", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    logging.getLogger("kopf.objects").setLevel(logging.CRITICAL)
