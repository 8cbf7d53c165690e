"""Which messages and pods count as lost, by tables of histories."""

from collections.abc import Iterator

import pytest

from e2e.load.ledger import (
    HEADER,
    MESSAGE,
    POD,
    Event,
    Ledger,
    Row,
    State,
    Tally,
    Tolerance,
    find_losses,
)

NONE = Tolerance()
KILLED = Tolerance(cuts=True)
NO_INJECTOR = Tolerance(rejections=True)
NO_API_SERVER = Tolerance(rejections=True, outages=True)


def history(*states: str) -> list[Event]:
    """Events of one item, a second apart."""
    return [Event(float(at), "one", State(state)) for at, state in enumerate(states)]


@pytest.mark.parametrize(
    ("states", "tolerance"),
    [
        ("waiting sent answered", NONE),
        ("waiting", NONE),  # still at the sidecar
        ("waiting waiting sent answered", NONE),
        ("waiting waiting undelivered", NONE),
        ("waiting sent cut waiting sent answered", KILLED),
        ("waiting sent rejected waiting sent answered", NO_INJECTOR),
    ],
)
def test_a_message_is_not_lost(states: str, tolerance: Tolerance) -> None:
    assert find_losses(history(*states.split()), MESSAGE, tolerance) == []


@pytest.mark.parametrize(
    ("states", "tolerance", "losses"),
    [
        ("waiting sent", KILLED, ["sent, and never answered"]),
        ("waiting sent cut", KILLED, ["cut, and not tried again"]),
        ("waiting sent cut waiting", KILLED, ["waiting, and never sent"]),
        ("waiting waiting", NONE, ["waiting, and never sent"]),
        ("waiting sent cut waiting undelivered", KILLED, ["undelivered, though it had been sent"]),
        ("waiting sent cut waiting sent answered", NONE, ["cut: no process was killed"]),
        ("waiting sent wrong", KILLED, ["wrong"]),
        ("waiting sent rejected", NO_INJECTOR, ["rejected, and not tried again"]),
        ("waiting sent answered answered", KILLED, ["answered after answered"]),
        ("waiting answered", KILLED, ["answered after waiting"]),
    ],
)
def test_a_message_is_lost(states: str, tolerance: Tolerance, losses: list[str]) -> None:
    assert find_losses(history(*states.split()), MESSAGE, tolerance) == losses


@pytest.mark.parametrize(
    ("states", "tolerance", "losses"),
    [
        ("requested injected", NONE, []),
        ("requested rejected requested injected", NO_INJECTOR, []),
        ("requested unknown requested injected", NO_API_SERVER, []),
        (
            "requested rejected requested injected",
            NONE,
            ["rejected: the injector was up"],
        ),
        (
            "requested unknown requested injected",
            NO_INJECTOR,
            ["unknown: the API server was up"],
        ),
        ("requested unchanged", NO_API_SERVER, ["unchanged"]),
        ("requested partial", NO_API_SERVER, ["partial"]),
        ("requested rejected", NO_INJECTOR, ["rejected, and not tried again"]),
        ("requested rejected injected", NO_INJECTOR, ["injected after rejected"]),
    ],
)
def test_a_pod_is_lost_or_not(states: str, tolerance: Tolerance, losses: list[str]) -> None:
    assert find_losses(history(*states.split()), POD, tolerance) == losses


def test_a_tally_counts_the_events_since_a_moment_and_the_longest_recovery() -> None:
    ledger = Ledger(MESSAGE)
    for item, text in {
        "early": "0 waiting 0 sent 1 answered",
        "met": "8 waiting 9 sent 10 cut 10 waiting 14 sent 15 answered",
        "late": "20 waiting 20 sent 21 rejected 30 waiting 30 sent 31 answered",
    }.items():
        words = text.split()
        pairs = zip(words[::2], words[1::2], strict=True)
        details = {"rejected": "oom_error"}
        ledger.record(
            Event(float(at), item, State(state), details.get(state, "")) for at, state in pairs
        )
    tolerance = Tolerance(cuts=True, rejections=True)
    assert ledger.tally(tolerance, since=5) == Tally(
        sent=4, done=2, rejected={"oom_error": 1}, retried=2, lost=[], recovery=11
    )
    lost = ["met: cut: no process was killed"]
    assert ledger.tally(Tolerance(rejections=True), since=5).lost == lost


def test_a_row_has_a_cell_for_each_column() -> None:
    row = Row("all gone", "pods", Tally(12, 10, {"connection refused": 2}, 2, [], 3.25))
    assert dict(zip(HEADER, row.cells(), strict=True)) == {
        "fault": "all gone",
        "load": "pods",
        "sent": "12",
        "answered": "10",
        "rejected": "2 connection refused",
        "retried": "2",
        "lost": "0",
        "recovered after s": "3.2",
    }


def test_other_threads_see_all_events_of_a_call_or_none() -> None:
    """The load is judged while threads record it."""
    ledger, seen = Ledger(POD), []

    def request() -> Iterator[Event]:
        yield Event(1.0, "a", State.REQUESTED)
        seen.append(dict(ledger.histories))
        yield Event(2.0, "a", State.INJECTED)

    ledger.record(request())
    assert seen == [{}]
    assert ledger.tally(Tolerance()).lost == []
