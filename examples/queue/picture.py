"""The flow of messages in the terminal: drawn again and again, or plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

WIDTH = 30
PLAIN_PAUSE = 2.0  # seconds between plain lines
FLOW = """\
  {identify:>14} ──► identify ──► {sort:<8} ──► sort ──┬─► {results}
                        │                             ├─► {code}
                        ▼                             ├─► {text}
                 {dead:<20}                 └─► {others}
  {bar} {done} of {total}, {rate:.0f} messages/s"""


class Picture:
    """What the queues hold, and how fast messages come out of the last one."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.is_terminal = sys.stdout.isatty()
        self.began = time.monotonic()
        self.last_line = 0.0
        self.held: Mapping[str, int] = {}

    def show(self, held: Mapping[str, int]) -> None:
        """Draw the picture over the one before, or print a line from time to time."""
        now = time.monotonic()
        if self.is_terminal:
            text = self.draw(held, now - self.began)
            up = f"\033[{text.count(chr(10)) + 1}F" if self.held else ""
            print(up + "\n".join(line + "\033[K" for line in text.splitlines()), flush=True)
        elif now - self.last_line >= PLAIN_PAUSE:
            self.last_line = now
            print(self.describe(held, now - self.began), flush=True)
        self.held = held

    def end(self) -> None:
        """Print the last state, if lines are plain."""
        if not self.is_terminal:
            print(self.describe(self.held, time.monotonic() - self.began), flush=True)

    def draw(self, held: Mapping[str, int], seconds: float) -> str:
        """The picture as lines."""
        done = held["results"]
        full = WIDTH * min(done, self.total) // self.total
        names = {"code": "shelf-code", "text": "shelf-text", "others": "shelf-others"}
        names |= {"identify": "identify", "sort": "sort", "results": "results"}
        names["dead"] = "identify.dead"
        return FLOW.format(
            **{key: f"{name} [{held[name]}]" for key, name in names.items()},
            bar="█" * full + "░" * (WIDTH - full),
            done=done,
            total=self.total,
            rate=done / seconds if seconds else 0,
        )

    def describe(self, held: Mapping[str, int], seconds: float) -> str:
        """The same as one line."""
        rate = held["results"] / seconds if seconds else 0
        queues = ", ".join(f"{name} {count}" for name, count in held.items())
        return f"  {seconds:4.1f} s: {rate:.0f} messages/s; waiting: {queues}"
