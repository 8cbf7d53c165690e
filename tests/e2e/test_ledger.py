"""What counts as lost, by tables of histories."""

import pytest

from e2e.load.ledger import (
    HEADER,
    MESSAGE,
    POD,
    Event,
    Ledger,
    Promise,
    Row,
    State,
    Tally,
    as_markdown,
    as_text,
    faults_of,
)

NOTHING = Promise()
KILLED = Promise(cuts=True)
AWAY = Promise(refusals=True)
DEAF = Promise(refusals=True, outages=True)


def history(*states: str) -> list[Event]:
    """A second between the states of one thing."""
    return [Event(float(at), "one", State(state)) for at, state in enumerate(states)]


@pytest.mark.parametrize(
    ("states", "promise"),
    [
        ("waiting sent answered", NOTHING),
        ("waiting", NOTHING),  # the sidecar still has it
        ("waiting waiting sent answered", NOTHING),
        ("waiting waiting untaken", NOTHING),
        ("waiting sent cut waiting sent answered", KILLED),
        ("waiting sent refused waiting sent answered", AWAY),
    ],
)
def test_a_message_is_not_lost(states: str, promise: Promise) -> None:
    assert faults_of(history(*states.split()), MESSAGE, promise) == []


@pytest.mark.parametrize(
    ("states", "promise", "why"),
    [
        ("waiting sent", KILLED, ["sent, and never answered"]),
        ("waiting sent cut", KILLED, ["cut for ever"]),
        ("waiting sent cut waiting", KILLED, ["waiting for ever"]),
        ("waiting waiting", NOTHING, ["waiting for ever"]),
        ("waiting sent cut waiting untaken", KILLED, ["untaken, though it had been sent"]),
        ("waiting sent cut waiting sent answered", NOTHING, ["cut: nobody's process was killed"]),
        ("waiting sent mangled", KILLED, ["mangled"]),
        ("waiting sent refused", AWAY, ["refused for ever"]),
        ("waiting sent answered answered", KILLED, ["answered after answered"]),
        ("waiting answered", KILLED, ["answered after waiting"]),
    ],
)
def test_a_message_is_lost(states: str, promise: Promise, why: list[str]) -> None:
    assert faults_of(history(*states.split()), MESSAGE, promise) == why


@pytest.mark.parametrize(
    ("states", "promise", "why"),
    [
        ("asked injected", NOTHING, []),
        ("asked refused asked injected", AWAY, []),
        ("asked unheard asked injected", DEAF, []),
        ("asked refused asked injected", NOTHING, ["refused: somebody should have answered"]),
        ("asked unheard asked injected", AWAY, ["unheard: the API server was not touched"]),
        ("asked bare", DEAF, ["bare"]),
        ("asked half", DEAF, ["half"]),
        ("asked refused", AWAY, ["refused for ever"]),
        ("asked refused injected", AWAY, ["injected after refused"]),
    ],
)
def test_a_pod_is_lost_or_not(states: str, promise: Promise, why: list[str]) -> None:
    assert faults_of(history(*states.split()), POD, promise) == why


def test_a_tally_counts_what_happened_since_and_how_long_the_unlucky_waited() -> None:
    ledger = Ledger(MESSAGE)
    for thing, text in {
        "early": "0 waiting 0 sent 1 answered",
        "met": "8 waiting 9 sent 10 cut 10 waiting 14 sent 15 answered",
        "late": "20 waiting 20 sent 21 refused 30 waiting 30 sent 31 answered",
    }.items():
        words = text.split()
        pairs = zip(words[::2], words[1::2], strict=True)
        details = {"refused": "oom_error"}
        ledger.record(
            Event(float(at), thing, State(state), details.get(state, "")) for at, state in pairs
        )
    promise = Promise(cuts=True, refusals=True)
    assert ledger.tally(promise, since=5) == Tally(
        sent=4, done=2, refused={"oom_error": 1}, retried=2, lost=[], back=11
    )
    lost = ["met: cut: nobody's process was killed"]
    assert ledger.tally(Promise(refusals=True), since=5).lost == lost


def test_a_table_is_aligned() -> None:
    row = Row("all gone", "pods", Tally(12, 10, {"connection refused": 2}, 2, [], 3.25))
    assert as_text([HEADER, row.cells()]) == [
        "fault    | load | sent | answered |              refused | retried | lost | back after s",
        "all gone | pods |   12 |       10 | 2 connection refused |       2 |    0 |          3.2",
    ]
    assert as_markdown([HEADER, row.cells()]) == [
        "| fault | load | sent | answered | refused | retried | lost | back after s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| all gone | pods | 12 | 10 | 2 connection refused | 2 | 0 | 3.2 |",
    ]
