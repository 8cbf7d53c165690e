"""What the feed of a pipeline (pods/feed.py) has sent and received, by its log."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

HEADER = ["fault", "sent", "results", "duplicates", "dead letters", "lost", "longest way, s"]


@dataclass
class Flow:
    """sent: when each message was confirmed; results: when results of it arrived; dead: reasons."""

    sent: dict[str, float] = field(default_factory=dict)
    results: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    identifiers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    dead: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    is_complete: bool = False

    @classmethod
    def parse(cls, log: str) -> Flow:
        """Read complete lines."""
        flow = cls()
        for line in log.splitlines(keepends=True):
            match line.split() if line.endswith("\n") else []:
                case ["sent", name, at]:
                    flow.sent[name] = float(at)
                case ["result", name, identifier, at]:
                    flow.results[name].append(float(at))
                    flow.identifiers[name].add(identifier)
                case ["dead", name, *reason]:
                    flow.dead[name].append(" ".join(reason))
                case ["end"]:
                    flow.is_complete = True
        return flow

    def during(self, began: float, ended: float) -> list[str]:
        """The messages that were sent before the end, and not all done before the beginning."""
        return [
            name
            for name, at in self.sent.items()
            if at <= ended and max(self.results.get(name) or [self.due(name, at)]) >= began
        ]

    def due(self, name: str, sent: float) -> float:
        """When a message without a result was, or will be, done."""
        return sent if is_poison(name) else float("inf")

    def lost(self, began: float, ended: float) -> list[str]:
        """The messages without a result, except poison."""
        names = self.during(began, ended)
        return [name for name in names if name not in self.results and not is_poison(name)]

    def answered_since(self, at: float) -> bool:
        """Whether a message that was sent later has a result."""
        return any(name in self.results for name, sent in self.sent.items() if sent > at)

    def cells(self, fault: str, began: float, ended: float) -> list[str]:
        """A row of the table with HEADER."""
        names = self.during(began, ended)
        counts = [len(self.results.get(name, [])) for name in names]
        longest = max(
            (self.results[name][0] - self.sent[name] for name in names if name in self.results),
            default=0.0,
        )
        done, dead = sum(map(bool, counts)), sum(map(is_poison, names))
        lost = len(self.lost(began, ended))
        numbers = [len(names), done, sum(counts) - done, dead, lost]
        return [fault, *map(str, numbers), f"{longest:.1f}"]


def is_poison(name: str) -> bool:
    """Whether a message fails by its number."""
    return int(name[1:]) % 100 == 99
