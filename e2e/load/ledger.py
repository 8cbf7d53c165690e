"""What became of every message and of every pod, and which of them are lost.

An item (a message, or a pod that is requested) has a history of events. A table says which state
may follow which. This module does no I/O: `traffic` records the events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class State(StrEnum):
    """The state of an item: of a message down to UNDELIVERED, of a pod from REQUESTED on.

    Both can be REJECTED.
    """

    WAITING = "waiting"  # not sent as a whole; may be sent again
    SENT = "sent"  # the actor has all of it
    ANSWERED = "answered"  # with the expected result
    REJECTED = "rejected"  # with an error, of the actor or of the API server
    CUT = "cut"  # sent as a whole, and the connection ended without a reply
    WRONG = "wrong"  # answered with another result
    UNDELIVERED = "undelivered"  # still at the sidecar when its pod ended

    REQUESTED = "requested"  # the API server was asked to create it
    UNKNOWN = "unknown"  # the API server did not answer: the pod may or may not exist
    INJECTED = "injected"  # admitted as an actor
    UNCHANGED = "unchanged"  # admitted without any injection
    PARTIAL = "partial"  # admitted with a part of the injection


S = State
Transitions = Mapping[State | None, frozenset[State]]
MESSAGE: Transitions = {
    None: frozenset({S.WAITING}),
    S.WAITING: frozenset({S.WAITING, S.SENT, S.UNDELIVERED}),
    S.SENT: frozenset({S.ANSWERED, S.REJECTED, S.CUT, S.WRONG}),
    S.CUT: frozenset({S.WAITING}),
    S.REJECTED: frozenset({S.WAITING}),
    S.ANSWERED: frozenset(),
    S.WRONG: frozenset(),
    S.UNDELIVERED: frozenset(),
}
POD: Transitions = {
    None: frozenset({S.REQUESTED}),
    S.REQUESTED: frozenset({S.INJECTED, S.UNCHANGED, S.PARTIAL, S.REJECTED, S.UNKNOWN}),
    S.REJECTED: frozenset({S.REQUESTED}),
    S.UNKNOWN: frozenset({S.REQUESTED}),
    S.INJECTED: frozenset(),
    S.UNCHANGED: frozenset(),
    S.PARTIAL: frozenset(),
}


@dataclass(frozen=True)
class Event:
    """An item came into a state. at: seconds of one clock; detail: the reason."""

    at: float
    item: str
    state: State
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """What a fault may do to the items that it affects. Everything else is a loss.

    cuts: messages that a killed process had are cut, and answered when they are sent again.
    rejections: pods are rejected while no injector answers, and admitted later.
    outages: the API server may be unavailable.
    """

    cuts: bool = False
    rejections: bool = False
    outages: bool = False


@dataclass(frozen=True)
class Tally:
    """Counts of a ledger, each loss in words, and the longest recovery of a retried item."""

    sent: int
    done: int
    rejected: Mapping[str, int]
    retried: int
    lost: Sequence[str]
    recovery: float


@dataclass
class Ledger:
    """The histories of messages or of pods, with their table of transitions."""

    table: Transitions
    histories: dict[str, list[Event]] = field(default_factory=dict)

    def record(self, events: Iterable[Event]) -> None:
        """Add events; other threads see all those of an item, or none."""
        added: dict[str, list[Event]] = {}
        for event in events:
            added.setdefault(event.item, []).append(event)
        for item, new in added.items():
            self.histories[item] = [*self.histories.get(item, ()), *new]

    def tally(self, tolerance: Tolerance, *, since: float = 0.0) -> Tally:
        """Judge every item that was not done at `since`."""
        lost: list[str] = []
        states: Counter[State] = Counter()
        rejected: Counter[str] = Counter()
        retried, recovery = 0, 0.0
        for item, history in list(self.histories.items()):  # other threads record events
            if history[-1].at < since:
                continue
            lost += (f"{item}: {loss}" for loss in find_losses(history, self.table, tolerance))
            counted = [event for event in history if event.at >= since]
            states.update(event.state for event in counted)
            rejected.update(event.detail for event in counted if event.state == S.REJECTED)
            retries = sum(event.state in (S.WAITING, S.REQUESTED) for event in history) - 1
            retried += retries
            if retries:
                recovery = max(recovery, history[-1].at - history[0].at)
        sent = states[S.SENT] + states[S.REQUESTED]
        done = states[S.ANSWERED] + states[S.INJECTED]
        return Tally(sent, done, dict(rejected), retried, lost, recovery)


def find_losses(history: Sequence[Event], table: Transitions, tolerance: Tolerance) -> list[str]:
    """Everything that is wrong with the history of one item, in words."""
    losses: list[str] = []
    before: State | None = None
    for event in history:
        if event.state not in table[before]:
            losses.append(f"{event.state} after {before or 'nothing'}")
        before = event.state
        detail = f" ({event.detail})" if event.detail else ""
        if event.state in (S.WRONG, S.UNCHANGED, S.PARTIAL):
            losses.append(f"{event.state}{detail}")
        elif event.state == S.CUT and not tolerance.cuts:
            losses.append(f"cut{detail}: no process was killed")
        elif event.state == S.REJECTED and not tolerance.rejections:
            losses.append(f"rejected{detail}: the injector was up")
        elif event.state == S.UNKNOWN and not tolerance.outages:
            losses.append(f"unknown{detail}: the API server was up")
    if before == S.SENT:
        losses.append("sent, and never answered")
    elif before in (S.CUT, S.REJECTED, S.UNKNOWN, S.REQUESTED):
        losses.append(f"{before}, and not tried again")
    elif before == S.UNDELIVERED and any(event.state == S.SENT for event in history):
        losses.append("undelivered, though it had been sent")
    elif before == S.WAITING and len(history) > 1:
        losses.append("waiting, and never sent")
    return losses


@dataclass(frozen=True)
class Row:
    """A row of the table of results: one fault, and one kind of load during it."""

    fault: str
    load: str
    tally: Tally

    def cells(self) -> list[str]:
        """The texts of the columns in `HEADER`."""
        tally = self.tally
        rejected = ", ".join(f"{count} {why}" for why, count in sorted(tally.rejected.items()))
        recovery = f"{tally.recovery:.1f}" if tally.retried else "-"
        counts = [str(tally.sent), str(tally.done), rejected or "0", str(tally.retried)]
        return [self.fault, self.load, *counts, str(len(tally.lost)), recovery]


HEADER = ["fault", "load", "sent", "answered", "rejected", "retried", "lost", "recovered after s"]
