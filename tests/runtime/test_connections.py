"""Connections in any state, many at once: a random walk, each reply compared with the oracle."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    precondition,
    rule,
    run_state_machine_as_test,
)

from . import fuzz, oracle
from .conftest import Client, Process, Start, frame

KNOWN = fuzz.SAMPLES + fuzz.RARE
BODIES = st.one_of(
    st.integers(0, len(KNOWN) - 1).map(lambda at: KNOWN[at]),  # a short repr
    st.binary(max_size=40),
    st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9), max_size=3).map(
        lambda payload: frame({"payload": payload})[4:]
    ),
)


@dataclass
class Connection:
    """One connection and what has gone through it."""

    client: Client
    pending: bytes = b""  # begun by a rule, not yet sent
    sent: bytearray = field(default_factory=bytearray)
    seen: int = 0
    ended: bool = False

    def push(self, size: int) -> None:
        """Send so much of what is pending, and no more at once than the peer's buffer takes."""
        data, self.pending = self.pending[:size], self.pending[size:]
        for at in range(0, len(data), fuzz.AHEAD):
            self.client.send(data[at : at + fuzz.AHEAD])
            self.sent += data[at : at + fuzz.AHEAD]
            if at + fuzz.AHEAD < len(data):
                self.check()

    def check(self) -> None:
        """Read every reply that is due; each must be the one that the contract wants."""
        for expected in list(oracle.replies(bytes(self.sent), self.ended))[self.seen :]:
            reply = self.client.exactly(int.from_bytes(self.client.exactly(4), "big"))
            assert oracle.agrees(reply, expected), (reply, expected)
            self.seen += 1
        if self.ended:
            assert self.client.at_end()


class Connections(RuleBasedStateMachine):
    """Opens, sends whole and in pieces, sends ahead, reads, ends and breaks connections."""

    process: Process
    alive = Bundle("alive")

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Connection] = []

    @rule(target=alive)
    def open(self) -> Connection:
        self.all.append(Connection(Client(self.process.socket)))
        return self.all[-1]

    @rule(one=alive, bodies=st.lists(BODIES, min_size=1, max_size=5))
    def begin(self, one: Connection, bodies: list[bytes]) -> None:
        one.pending += b"".join(map(frame, bodies))

    @rule(one=alive, excess=st.integers(1, 9))
    def begin_what_is_over_the_limit(self, one: Connection, excess: int) -> None:
        one.pending += frame(bytes(oracle.LIMIT + excess))

    @rule(one=alive, size=st.integers(1, 9) | st.just(1 << 20))
    def send_a_piece(self, one: Connection, size: int) -> None:
        one.push(size)
        one.check()  # so that nobody's buffer fills: a deaf peer is another test's

    @rule(one=alive)
    def read_in_mid_frame(self, one: Connection) -> None:
        one.check()

    @rule(one=consumes(alive))
    def forge_a_length(self, one: Connection) -> None:
        """It is never finished: replies to what came before must come all the same."""
        one.push(len(one.pending))
        one.pending = b"\xff\xff\xff\xff{"
        one.push(5)
        one.check()

    @rule(one=consumes(alive), size=st.integers(0, 9))
    def half_close(self, one: Connection, size: int) -> None:
        one.push(size)
        one.client.sock.shutdown(socket.SHUT_WR)
        one.ended = True
        one.check()
        self.close(one)

    @rule(one=consumes(alive), size=st.integers(0, 9) | st.just(1 << 20))
    def leave(self, one: Connection, size: int) -> None:
        one.push(size)
        self.close(one)

    @precondition(lambda self: self.all)
    @rule()
    def all_others_are_served(self) -> None:
        for one in self.all:
            one.check()

    def close(self, one: Connection) -> None:
        one.client.close()
        self.all.remove(one)

    def teardown(self) -> None:
        try:
            for one in self.all:
                one.check()
                one.client.sock.setblocking(False)
                with pytest.raises(BlockingIOError):
                    one.client.sock.recv(1)  # nobody is answered twice
            assert self.process.call({}) == {"status": "ok", "result": {}}
        finally:
            for one in self.all:
                one.client.close()


@pytest.mark.parametrize("concurrency", ["1", "3"])
def test_each_complete_frame_gets_its_one_reply_in_its_turn(
    start: Start, folder: Path, concurrency: str
) -> None:
    environ = fuzz.settings(folder, ASYA_CONCURRENCY=concurrency)
    del environ["ASYA_HANDLER"]
    process = start(oracle.HANDLER, "app.answer", **environ)
    machine = type("Machine", (Connections,), {"process": process})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
