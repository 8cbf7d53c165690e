"""What became of every message and of every pod, and whether anything that was promised is missing.

A thing (a message, a pod that is asked for) has a history of events; which state may follow which
is a table. No I/O in this module: `traffic` feeds it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """Where a thing is. Of a message: up to `UNTAKEN`. Of a pod: the others."""

    WAITING = "waiting"  # no one has it as a whole; it may be said again
    SENT = "sent"  # wholly in the actor's hands
    ANSWERED = "answered"  # with its own result
    REFUSED = "refused"  # with an error: the reply's code, the API server's words
    CUT = "cut"  # wholly sent, and the connection ended without a reply
    MANGLED = "mangled"  # answered with something else than its own result
    UNTAKEN = "untaken"  # still the sidecar's when its pod ended

    ASKED = "asked"  # the API server has been asked to create it
    UNHEARD = "unheard"  # the API server did not answer: it may or may not exist
    INJECTED = "injected"  # admitted, as a whole actor
    BARE = "bare"  # admitted with nothing of ours
    HALF = "half"  # admitted with a part of it


S = State
MESSAGE: Mapping[State | None, frozenset[State]] = {
    None: frozenset({S.WAITING}),
    S.WAITING: frozenset({S.WAITING, S.SENT, S.UNTAKEN}),
    S.SENT: frozenset({S.ANSWERED, S.REFUSED, S.CUT, S.MANGLED}),
    S.CUT: frozenset({S.WAITING}),
    S.REFUSED: frozenset({S.WAITING}),
    S.ANSWERED: frozenset(),
    S.MANGLED: frozenset(),
    S.UNTAKEN: frozenset(),
}
POD: Mapping[State | None, frozenset[State]] = {
    None: frozenset({S.ASKED}),
    S.ASKED: frozenset({S.INJECTED, S.BARE, S.HALF, S.REFUSED, S.UNHEARD}),
    S.REFUSED: frozenset({S.ASKED}),
    S.UNHEARD: frozenset({S.ASKED}),
    S.INJECTED: frozenset(),
    S.BARE: frozenset(),
    S.HALF: frozenset(),
}


@dataclass(frozen=True)
class Event:
    """At a time (seconds of one clock), a thing came into a state; `detail` says why."""

    at: float
    thing: str
    state: State
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a fault may do to those whom it meets; everything else is a loss.

    cuts: messages in the hands of a process that was killed are cut, and answered when they are
    sent again. refusals: pods are refused while nobody answers, and admitted later. outages: the
    API server itself may be away.
    """

    cuts: bool = False
    refusals: bool = False
    outages: bool = False


@dataclass(frozen=True)
class Tally:
    """Counts of one ledger, each loss in words, and the longest that anybody had to wait."""

    sent: int
    done: int
    refused: Mapping[str, int]
    retried: int
    lost: Sequence[str]
    back: float


@dataclass
class Ledger:
    """Histories of things of one kind: messages or pods, by its table of transitions."""

    table: Mapping[State | None, frozenset[State]]
    histories: dict[str, list[Event]] = field(default_factory=dict)

    def record(self, events: Iterable[Event]) -> None:
        for event in events:
            self.histories.setdefault(event.thing, []).append(event)

    def tally(self, promise: Promise, *, since: float = 0.0) -> Tally:
        """Judge every thing that was not yet done at `since`."""
        lost: list[str] = []
        seen: Counter[State] = Counter()
        refused: Counter[str] = Counter()
        retried, back = 0, 0.0
        for thing, history in list(self.histories.items()):  # others go on to record
            if history[-1].at < since:
                continue
            lost += (f"{thing}: {why}" for why in faults_of(history, self.table, promise))
            counted = [event for event in history if event.at >= since]
            seen.update(event.state for event in counted)
            refused.update(event.detail for event in counted if event.state == S.REFUSED)
            again = sum(event.state in (S.WAITING, S.ASKED) for event in history) - 1
            retried += again
            if again:
                back = max(back, history[-1].at - history[0].at)
        sent = seen[S.SENT] + seen[S.ASKED]
        done = seen[S.ANSWERED] + seen[S.INJECTED]
        return Tally(sent, done, dict(refused), retried, lost, back)


def faults_of(
    history: Sequence[Event], table: Mapping[State | None, frozenset[State]], promise: Promise
) -> list[str]:
    """All that is wrong with what became of one thing, in words; empty where nothing is."""
    wrong: list[str] = []
    before: State | None = None
    for event in history:
        if event.state not in table[before]:
            wrong.append(f"{event.state} after {before or 'nothing'}")
        before = event.state
        word = f" ({event.detail})" if event.detail else ""
        if event.state in (S.MANGLED, S.BARE, S.HALF):
            wrong.append(f"{event.state}{word}")
        elif event.state == S.CUT and not promise.cuts:
            wrong.append(f"cut{word}: nobody's process was killed")
        elif event.state == S.REFUSED and not promise.refusals:
            wrong.append(f"refused{word}: somebody should have answered")
        elif event.state == S.UNHEARD and not promise.outages:
            wrong.append(f"unheard{word}: the API server was not touched")
    if before == S.SENT:
        wrong.append("sent, and never answered")
    elif before in (S.CUT, S.REFUSED, S.UNHEARD, S.ASKED):
        wrong.append(f"{before} for ever")
    elif before == S.UNTAKEN and any(event.state == S.SENT for event in history):
        wrong.append("untaken, though it had been sent")
    elif before == S.WAITING and len(history) > 1:
        wrong.append("waiting for ever")
    return wrong


@dataclass(frozen=True)
class Row:
    """A line of the result table: one fault, and one kind of load under it."""

    fault: str
    load: str
    tally: Tally

    def cells(self) -> list[str]:
        """The line's texts, as `HEADER` names them."""
        one = self.tally
        refused = ", ".join(f"{count} {why}" for why, count in sorted(one.refused.items())) or "0"
        lost = str(len(one.lost))
        back = f"{one.back:.1f}" if one.retried else "-"
        counts = [str(one.sent), str(one.done), refused, str(one.retried), lost]
        return [self.fault, self.load, *counts, back]


HEADER = ["fault", "load", "sent", "answered", "refused", "retried", "lost", "back after s"]


def as_markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """The same for the documentation."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    ruler = "| --- | --- |" + " ---: |" * (len(rows[0]) - 2)
    return [lines[0], ruler, *lines[1:]]


def as_text(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: first row the header, two columns of text and then numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " | ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
