"""No way out leaves a sent message unanswered: descriptors, crowds, drains and slow peers."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    rule,
    run_state_machine_as_test,
)

from .conftest import DEADLINE, Client, Process, Start, eventually, frame
from .served import ok, stopped

FILES = 64


class Crowd:
    """Clients on threads. A message counts as sent when the whole of it was; then it is due."""

    def __init__(self, process: Process, clients: int, rounds: int, *, keep: bool) -> None:
        self.process, self.rounds, self.keep = process, rounds, keep
        self.answered: list[int] = [0] * clients
        self.lost: list[str] = []
        self.threads = [threading.Thread(target=self.talk, args=(n,)) for n in range(clients)]

    def talk(self, number: int) -> None:
        client = None
        for turn in range(self.rounds):
            sent = {"client": number, "turn": turn}
            for _ in range(1000):  # what was not sent whole may be sent again
                try:
                    client = client or Client(self.process.socket)
                    client.send(frame({"payload": sent}))
                    break
                except (BrokenPipeError, ConnectionResetError):
                    self.leave(client)
                    client = None
            else:
                self.lost.append(f"{sent} could never be sent")
                return
            try:
                got = client.reply()
                if got["status"] == "ok" and got["result"] != sent:
                    self.lost.append(f"{sent} was answered {got}")
                self.answered[number] += 1
                if not self.keep:
                    self.leave(client)
                    client = None
            except (OSError, EOFError) as error:
                self.lost.append(f"{sent}: {error!r}")
                self.leave(client)
                client = None
        self.leave(client)

    def leave(self, client: Client | None) -> None:
        if client:
            client.close()

    def run(self) -> None:
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join(60)
        assert self.lost == [], self.process.log()[-3000:]
        assert self.answered == [self.rounds] * len(self.threads)


def sent(process: Process, data: bytes) -> Client:
    """Send all of it on a connection of its own; again, if the process wanted its room back."""
    for _ in range(1000):
        client = process.client()
        try:
            client.send(data)
            return client
        except (BrokenPipeError, ConnectionResetError):
            client.close()
    pytest.fail("it could never be sent")


LIMIT = f"""
    import os, resource
    resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))
    def predict(m):
        LEAK
        return m["payload"]
    async def later(m): return predict(m)
"""
LEAKS = {
    "a-descriptor-a-call": "os.open(os.devnull, os.O_RDONLY)",
    "and-takes-no-notice": "os.dup(0) if len(os.listdir('/proc/self/fd')) < 50 else None",
    "a-pipe-a-call": "os.pipe()",
}


@pytest.mark.parametrize("leak", LEAKS.values(), ids=LEAKS)
@pytest.mark.parametrize("concurrency", ["1", "4"])
def test_a_handler_that_leaks_descriptors_loses_no_message(
    start: Start, leak: str, concurrency: str
) -> None:
    process = start(LIMIT.replace("LEAK", leak), "app.predict", ASYA_CONCURRENCY=concurrency)
    Crowd(process, 2, 60, keep=False).run()
    assert process.popen.poll() is None
    stopped(process)


def test_a_handler_that_leaks_descriptors_loses_no_message_anywhere(
    start: Start, python: str
) -> None:
    process = start(
        LIMIT.replace("LEAK", LEAKS["a-descriptor-a-call"]), "app.predict", python=python
    )
    Crowd(process, 2, 60, keep=False).run()
    stopped(process)


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "one-a-message"])
@pytest.mark.parametrize("concurrency", ["1", "4"])
@pytest.mark.parametrize("handler", ["predict", "later"])
def test_more_clients_than_connections_are_all_answered(
    start: Start, keep: bool, concurrency: str, handler: str
) -> None:
    source = LIMIT.replace("LEAK", "")
    process = start(source, f"app.{handler}", ASYA_CONCURRENCY=concurrency)
    Crowd(process, 70, 8, keep=keep).run()
    stopped(process)


def test_more_clients_than_connections_are_all_answered_anywhere(start: Start, python: str) -> None:
    process = start(LIMIT.replace("LEAK", ""), "app.predict", python=python)
    Crowd(process, 70, 4, keep=True).run()
    stopped(process)


@pytest.mark.parametrize("concurrency", ["1", "4"])
def test_messages_sent_ahead_on_a_connection_that_makes_room_are_answered(
    start: Start, concurrency: str
) -> None:
    """All send while the process is busy; then it has to make room among those that have sent."""
    source = LIMIT.replace("LEAK", HELD)
    process = start(source, "app.predict", ASYA_CONCURRENCY=concurrency)
    holders = [process.client() for _ in range(int(concurrency))]
    for client in holders:
        client.send(frame({"payload": {"hold": 1}}))
    eventually(lambda: process.log().count("held") == int(concurrency), "calls")
    crowd = [sent(process, frame({"payload": {"n": number}}) * 3) for number in range(120)]
    (process.folder / "go").touch()
    for number, client in enumerate(crowd):
        assert [client.reply() for _ in range(3)] == [ok({"n": number})] * 3
    for client in holders:
        assert client.reply() == ok({"hold": 1})
    stopped(process)


HELD = """
        if "hold" in m["payload"]:
            import time
            os.write(2, b"held\\n")
            while not os.path.exists("go"): time.sleep(0.005)
"""
HOGS = """
        if "hold" in m["payload"]:
            import time
            os.write(2, b"held\\n")
            while not os.path.exists("go"): time.sleep(0.005)
            try:
                while True: os.open(os.devnull, os.O_RDONLY)
            except OSError: pass
"""


@pytest.mark.parametrize("hold", [HELD, HOGS], ids=["busy", "out-of-descriptors"])
@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_a_drain_answers_the_whole_backlog_whatever_it_takes_to_accept_it(
    start: Start, python: str, hold: str, concurrency: str
) -> None:
    source = LIMIT.replace("LEAK", hold)
    process = start(source, "app.predict", python=python, ASYA_CONCURRENCY=concurrency)
    first = [process.client() for _ in range(int(concurrency))]
    for client in first:
        client.send(frame({"payload": {"hold": 1}}))
    eventually(lambda: process.log().count("held") == int(concurrency), "calls")
    crowd = [sent(process, frame({"payload": {"n": number}}) * 2) for number in range(100)]
    process.signal()
    if concurrency == "2":  # the main thread is free: it has begun to end
        eventually(lambda: not process.socket.exists(), "no socket")
    (process.folder / "go").touch()
    got = []
    for client in [*first, *crowd]:
        with contextlib.suppress(OSError, EOFError):
            got.append(client.reply())
            got.append(client.reply())
    due = [ok({"hold": 1})] * len(first)
    due += [ok({"n": number}) for number in range(100) for _ in range(2)]
    assert got == due, process.log()[-2000:]
    assert process.wait() == 0


def test_a_drain_ends_where_no_connection_can_be_accepted(start: Start) -> None:
    source = "import resource as r\ndef predict(m): r.setrlimit(r.RLIMIT_NOFILE, (3, 64))"
    process = start(source, "app.predict")
    assert process.call({}) == ok(None)
    stopped(process)


# --- peers that read slowly or not at all ----------------------------------------------


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_a_peer_that_reads_slowly_gets_the_whole_of_its_reply_during_a_drain(
    start: Start, concurrency: str
) -> None:
    """It takes longer than anybody who reads nothing is waited for; another reads nothing."""
    size = 9_000_000
    source = f"def predict(m): return 'x' * {size}"
    process = start(source, "app.predict", ASYA_CONCURRENCY=concurrency)
    slow, deaf = process.client(), process.client()
    for client in (deaf, slow):
        client.send(frame({"payload": {}}))
        client.sock.recv(1, socket.MSG_PEEK)
    process.signal()
    began, got = time.monotonic(), bytearray()
    while time.monotonic() - began < 7:
        got += slow.exactly(50_000)
        select.select([], [], [], 0.05)
    whole = int.from_bytes(got[:4], "big") + 4
    got += slow.exactly(whole - len(got))
    assert bytes(got[4:]) == b'{"status":"ok","result":"' + b"x" * size + b'"}'
    assert slow.at_end()
    assert process.wait() == 0


LOST = """
    import os, time, threading
    def predict(m):
        p = m["payload"]
        if "hang" in p:
            os.write(2, b"hangs\\n")
            HANG
        if "lost" in p: raise RuntimeError("CUDA error: device-side assert triggered")
        return p
"""
HANGS = {
    "asleep": "time.sleep(3600)",
    "waiting": "threading.Event().wait()",
    "busy": "\n            while True: pass",
    "in-c": "__import__('hashlib').pbkdf2_hmac('md5', b'', b'', 10**9)",
}


@pytest.mark.parametrize("hang", HANGS.values(), ids=HANGS)
def test_a_lost_gpu_context_beside_a_call_that_hangs_ends_the_process(
    start: Start, hang: str
) -> None:
    process = start(LOST.replace("HANG", hang), "app.predict", ASYA_CONCURRENCY="2")
    hung, lost, later = process.client(), process.client(), process.client()
    hung.send(frame({"payload": {"hang": 1}}))
    process.logged("hangs")
    lost.send(frame({"payload": {"lost": 1}}))
    assert lost.reply() == {
        "status": "error",
        "error": "processing_error",
        "message": "CUDA error: device-side assert triggered",
        "type": "RuntimeError",
        "severity": "fatal",
    }
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        later.send(frame({"payload": {}}))
        with contextlib.suppress(EOFError):
            assert later.reply()["severity"] == "recoverable"
    assert process.wait() == 70
    assert not process.socket.exists()
    got = hung.reply()
    assert (got["error"], got["severity"]) == ("processing_error", "recoverable")


# --- all of it together ----------------------------------------------------------------

HOSTILE = """
    import ctypes, gc, os, resource, signal, sys, threading, time
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    leaked = []
    class Hostile(Exception):
        def __str__(self): raise SystemExit(4)
    def late(number, frame): raise TimeoutError("late")
    def predict(m, asynchronous=False):
        p = m["payload"]
        do = p["do"]
        if do == "sleep": time.sleep(0.02)
        if do == "large": return [p["n"], "x" * 3_000_000]
        if do == "raise": raise ValueError(p["n"])
        if do == "exit": sys.exit(3)
        if do == "interrupt": raise KeyboardInterrupt
        if do == "hostile": raise Hostile
        if do == "memory": raise MemoryError
        if do == "gpu": raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        if do == "nan": return float("nan")
        if do == "set": return {1}
        if do == "leak" and len(leaked) < 40: leaked.append(os.dup(0))
        if do == "close": [os.close(leaked.pop()) for _ in leaked[:]]
        if do == "fork":
            pid = os.fork()
            if pid == 0: sys.exit(3)
            os.waitpid(pid, 0)
        if do == "thread": threading.Thread(target=sys.exit).start()
        if do == "limit": sys.setrecursionlimit(200)
        if do == "streams": sys.stdout = sys.stderr = None
        if do == "modules": sys.modules["json"] = sys.modules["traceback"] = None
        if do == "names":
            os.write = gc.collect = None
            if not asynchronous: time.monotonic = None  # asyncio itself needs it
        if do == "trace": sys.settrace(lambda *args: None)
        if threading.current_thread() is threading.main_thread():
            if do == "pipe": signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            if do == "wakeup": signal.set_wakeup_fd(-1)
            if do == "alarm":
                signal.signal(signal.SIGALRM, late)
                signal.setitimer(signal.ITIMER_REAL, 0.0005)
        return p["n"]
    async def later(m): return predict(m, True)
"""
GOOD = ["echo", "sleep", "leak", "close", "fork", "thread", "limit", "streams", "modules", "names"]
GOOD += ["trace", "pipe", "wakeup", "alarm"]
BAD = ["raise", "exit", "interrupt", "hostile", "memory", "gpu", "nan", "set"]


class Talk:
    """One connection: what was wholly sent on it, and what has been read from it."""

    def __init__(self, path: Path) -> None:
        self.client = Client(path)
        self.due: list[tuple[str, int]] = []
        self.got = bytearray()
        self.refused = False
        self.begun = False  # a frame that never ends

    def send(self, data: bytes, due: list[tuple[str, int]]) -> None:
        """Send messages; once a write has failed, this connection sends nothing more."""
        if self.refused:
            return
        try:
            self.client.send(data)
            self.due += due
        except (BrokenPipeError, ConnectionResetError):
            self.refused = True

    def take(self, size: int) -> bool:
        """Read what is there, up to a size; False at the end of the stream."""
        data = self.client.sock.recv(size)
        self.got += data
        return bool(data)

    def replies(self) -> list[Any]:
        found, at = [], 0
        while at + 4 <= len(self.got):
            end = at + 4 + int.from_bytes(self.got[at : at + 4], "big")
            assert end <= len(self.got), f"torn after {len(self.got)} bytes"
            found.append(json.loads(self.got[at + 4 : end]))
            at = end
        assert at == len(self.got)
        return found

    def verify(self) -> None:
        replies = self.replies()
        told = [self.right(reply, *due) for reply, due in zip(replies, self.due, strict=False)]
        assert all(told), list(zip(replies, self.due, told, strict=False))
        if not self.refused:
            assert len(replies) == len(self.due), (replies, self.due)
        assert len(replies) <= len(self.due) + self.refused

    @staticmethod
    def right(reply: dict[str, Any], do: str, n: int) -> bool:
        if reply.get("type") == "TimeoutError":  # an alarm of another call rang in this one
            return True
        if do in BAD:
            return bool(reply["status"] == "error")
        if reply.get("type") == "OSError":  # no descriptor is left
            return True
        return bool(reply == ok([n, "x" * 3_000_000] if do == "large" else n))


class Hostilities(RuleBasedStateMachine):
    """Hostile handlers, full descriptors and slow peers; then SIGTERM, at any moment."""

    begin: Callable[[], Process]
    talks = Bundle("talks")

    def __init__(self) -> None:
        super().__init__()
        self.process = self.begin()
        self.all: list[Talk] = []
        self.number = 0

    def message(self, do: str) -> tuple[bytes, tuple[str, int]]:
        self.number += 1
        return frame({"payload": {"do": do, "n": self.number}}), (do, self.number)

    @rule(target=talks)
    def connect(self) -> Talk:
        self.all.append(Talk(self.process.socket))
        return self.all[-1]

    @rule(count=st.integers(5, 40))
    def crowd(self, count: int) -> None:
        """Connect many, who send one message each and read later."""
        for _ in range(count):
            talk = Talk(self.process.socket)
            self.all.append(talk)
            data, due = self.message("echo")
            talk.send(data, [due])

    @rule(talk=talks, what=st.lists(st.sampled_from(GOOD + BAD), min_size=1, max_size=4))
    def send(self, talk: Talk, what: list[str]) -> None:
        messages = [self.message(do) for do in what]
        talk.send(b"".join(data for data, _ in messages), [due for _, due in messages])

    @rule(talk=talks)
    def ask_for_much_and_read_a_little(self, talk: Talk) -> None:
        data, due = self.message("large")
        talk.send(data, [due])
        if not talk.refused:
            talk.take(1000)

    @rule(talk=talks, size=st.sampled_from([1, 5000, 1_000_000]))
    def read(self, talk: Talk, size: int) -> None:
        talk.client.sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            talk.take(size)
        talk.client.sock.settimeout(DEADLINE)

    @rule(talk=consumes(talks))
    def say_no_more(self, talk: Talk) -> None:
        if not talk.refused:
            with contextlib.suppress(OSError):
                talk.client.sock.shutdown(socket.SHUT_WR)

    @rule(talk=consumes(talks), size=st.integers(1, 12))
    def begin_a_frame(self, talk: Talk, size: int) -> None:
        """It never ends: nothing is due for it but what the stream's end may be told by."""
        talk.send(frame({"payload": {}})[:size], [])
        talk.begun = True

    @rule(talk=consumes(talks))
    def break_off(self, talk: Talk) -> None:
        talk.client.close()
        self.all.remove(talk)

    def teardown(self) -> None:
        try:
            self.process.signal()
            self.read_all()
            status = self.process.wait()
            assert status == 0, self.process.log()[-3000:]
            for talk in self.all:
                if talk.begun:  # told by one error, or by the end alone
                    talk.due.append(("raise", 0))
                    if len(talk.replies()) < len(talk.due):
                        talk.due.pop()
                talk.verify()
        finally:
            for talk in self.all:
                talk.client.close()
            self.process.end()
            self.process.socket.unlink(missing_ok=True)

    def read_all(self) -> None:
        """Read from all at the same time: who reads nothing for a while is left."""
        poll, open_ = select.poll(), {talk.client.sock.fileno(): talk for talk in self.all}
        for fd in open_:
            poll.register(fd, select.POLLIN)
        while open_:
            events = poll.poll(DEADLINE * 1000)
            assert events, "they are neither answered nor closed"
            for fd, _ in events:
                if not self.more(open_[fd]):
                    poll.unregister(fd)
                    del open_[fd]

    def more(self, talk: Talk) -> bool:
        try:
            return talk.take(1 << 20)
        except ConnectionResetError:
            return False


@pytest.mark.parametrize(
    ("handler", "concurrency"),
    [("predict", "1"), ("later", "1"), ("predict", "3")],
    ids=["plain", "async", "threads"],
)
def test_every_message_that_was_sent_before_the_end_is_answered_once(
    start: Start, handler: str, concurrency: str
) -> None:
    def begin() -> Process:
        return start(HOSTILE, f"app.{handler}", ASYA_CONCURRENCY=concurrency)

    machine = type("Machine", (Hostilities,), {"begin": staticmethod(begin)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
