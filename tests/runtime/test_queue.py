"""The queue alone, with a clock that stands still: which messages form a batch, and when."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

NOW = 1000.0


class Peer:
    """A connection, as the queue sees it."""

    def __init__(self) -> None:
        self.messages: list[Any] = []


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Bench:
    """A queue with connections that are named by letters, and what it has done."""

    def __init__(self, runtime: ModuleType, size: int, limit: int, wait: float = 0.0) -> None:
        environ = {
            "ASYA_HANDLER": "app.predict",
            "ASYA_BATCH_SIZE": str(size),
            "ASYA_BATCH_WAIT": str(wait),
            "ASYA_CONCURRENCY": str(limit),
        }
        self.runtime = runtime
        self.state = runtime.State()
        self.answered: list[list[Any]] = []
        self.woken: list[bool] = []
        self.queue = runtime.Queue(
            runtime.Settings(environ), self.answer, lambda: self.woken.append(True), self.state
        )
        self.peers: dict[str, Peer] = {}
        self.messages: list[Any] = []

    def answer(self, batch: Any) -> list[bytes]:
        self.answered.append(self.numbers(batch.messages))
        return [b"%d" % number for number in self.answered[-1]]

    def arrive(self, letters: str) -> None:
        """Let a message of each of these connections arrive."""
        for letter in letters:
            peer = self.peers.setdefault(letter, Peer())
            message = self.runtime.Message(peer)
            peer.messages.append(message)
            self.messages.append(message)
            self.queue.add(message)

    def run(self, letters: str) -> Any:
        """Let a batch of one message of each of these connections be in work."""
        peers = [self.peers.setdefault(letter, Peer()) for letter in letters]
        batch = self.runtime.Batch([self.runtime.Message(peer) for peer in peers])
        self.queue.batches[batch] = None
        return batch

    def numbers(self, messages: Any) -> list[int]:
        return [self.messages.index(message) if message in self.messages else -1
                for message in messages]  # fmt: skip

    def replies(self) -> list[Any]:
        return [message.reply for message in self.messages]


@pytest.fixture
def clock(runtime: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(runtime.time, "monotonic", clock)
    return clock


# what has arrived some seconds ago, and what is the delay until a batch begins
Delay = tuple[dict[str, Any], str, dict[str, Any], float | None]
FOUR = {"size": 4, "limit": 1}
DELAYS: dict[str, Delay] = {
    "nothing waits": (FOUR, "", {}, None),
    "one message": (FOUR, "a", {}, 0.0),
    "one message, and more may come": (FOUR | {"wait": 5}, "a", {}, 5.0),
    "it has waited for some of the time": (FOUR | {"wait": 5}, "a", {"ago": 2}, 3.0),
    "it has waited for all of the time": (FOUR | {"wait": 5}, "a", {"ago": 9}, 0.0),
    "a full batch": (FOUR | {"wait": 5}, "abcd", {}, 0.0),
    "as much as fits into memory": (FOUR | {"wait": 5}, "ab", {"fits": 2}, 0.0),
    "the process ends": (FOUR | {"wait": 5}, "a", {"hurry": True}, 0.0),
    "a frame has begun": (FOUR, "a", {"receiving": True}, 0.02),
    "a frame has begun and the batch is full": (FOUR, "abcd", {"receiving": True}, 0.0),
    "a step has brought something, and the process ends": (
        FOUR | {"wait": 5}, "a", {"receiving": True, "hurry": True}, 0.02),
    "a frame has begun, and more may come": (FOUR | {"wait": 5}, "a", {"receiving": True}, 5.0),
    "a frame does not go on": (FOUR, "a", {"receiving": True, "quiet": 0.015}, 0.005),
    "a frame has not gone on": (FOUR, "a", {"receiving": True, "quiet": 0.5}, 0.0),
    "a batch runs": (FOUR, "abcd", {"runs": ["e"]}, None),
    "a batch runs beside a free worker": (FOUR | {"limit": 2}, "a", {"runs": ["e"]}, 0.0),
    "a batch of the same connection runs": (FOUR | {"limit": 2}, "a", {"runs": ["a"]}, None),
    "a batch of one of two connections runs": (
        FOUR | {"limit": 2}, "ab", {"runs": ["a"]}, 0.0),
    "all workers are busy": (FOUR | {"limit": 2}, "a", {"runs": ["d", "e"]}, None),
    "all workers are busy with single messages": (
        {"size": 1, "limit": 2}, "a", {"runs": ["d", "e"]}, 0.0),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "letters", "more", "delay"), DELAYS.values(), ids=DELAYS)
def test_when_a_batch_begins(
    runtime: ModuleType,
    clock: Clock,
    settings: dict[str, Any],
    letters: str,
    more: dict[str, Any],
    delay: float | None,
) -> None:
    bench = Bench(runtime, **settings)
    clock.now -= more.get("ago", 0)
    bench.arrive(letters)
    clock.now = NOW
    bench.state.batch_limit = more.get("fits", 1024)
    for one in more.get("runs", ()):
        bench.run(one)
    given = more.get("hurry", False), more.get("receiving", False)
    if "quiet" in more:
        bench.queue.get_delay(*given)
        clock.now += more["quiet"]
    got = bench.queue.get_delay(*given)
    assert got == (None if delay is None else pytest.approx(delay))


# size, workers, connections of what waits, connections in work, what fits; numbers of the next
NEXT: dict[str, tuple[int, int, str, str, int, list[int]]] = {
    "in the order of arrival": (3, 1, "abcd", "", 1024, [0, 1, 2]),
    "several of a connection": (4, 1, "aabb", "", 1024, [0, 1, 2, 3]),
    "none of a connection that is in another batch": (4, 2, "abab", "a", 1024, [1, 3]),
    "no more than fit into memory": (4, 1, "abcd", "", 2, [0, 1]),
    "one, without batches": (1, 2, "abc", "", 1024, [0]),
}


@pytest.mark.parametrize(
    ("size", "limit", "waiting", "running", "fits", "numbers"), NEXT.values(), ids=NEXT
)
def test_which_messages_form_a_batch(
    runtime: ModuleType,
    clock: Clock,
    size: int,
    limit: int,
    waiting: str,
    running: str,
    fits: int,
    numbers: list[int],
) -> None:
    bench = Bench(runtime, size, limit)
    if running:
        bench.run(running)
    bench.arrive(waiting)
    bench.state.batch_limit, bench.state.limited_at = fits, NOW
    assert bench.numbers(bench.queue.get_next()) == numbers


def test_a_limit_of_memory_is_doubled_after_each_minute(runtime: ModuleType, clock: Clock) -> None:
    bench = Bench(runtime, 8, 1)
    bench.arrive("abcdefgh")
    bench.state.batch_limit, bench.state.limited_at = 1, NOW
    sizes = {}
    for seconds in (59, 61, 119, 121, 181, 999):
        clock.now = NOW + seconds
        sizes[seconds] = len(bench.queue.get_next())
    assert sizes == {59: 1, 61: 2, 119: 2, 121: 4, 181: 8, 999: 8}
    bench.state.batch_limit, bench.state.limited_at = 1, NOW
    assert len(bench.queue.get_next()) == 8  # some minutes at once


ROOM: dict[str, tuple[int, int, str, bool, bool]] = {
    "nothing waits": (2, 1, "", True, False),
    "as many as a batch are its own": (2, 1, "xx", False, False),
    "a batch waits": (2, 1, "ab", False, True),
    "a batch for one of two workers waits": (2, 2, "abc", True, False),
    "a batch for each of two workers waits": (2, 2, "abcd", False, True),
    "many wait, without batches": (1, 2, "abcdefgh", True, False),
    "one is its own, without batches": (1, 2, "x", False, False),
}


@pytest.mark.parametrize(
    ("size", "limit", "waiting", "has_room", "stalls"), ROOM.values(), ids=ROOM
)
def test_how_far_is_read_ahead(
    runtime: ModuleType, size: int, limit: int, waiting: str, has_room: bool, stalls: bool
) -> None:
    bench = Bench(runtime, size, limit)
    bench.arrive(waiting)
    peer = bench.peers.setdefault("x", Peer())
    assert bench.queue.has_room(peer) == has_room
    assert (peer in bench.queue.stalled) == stalls


def test_a_batch_is_answered_and_forgotten(runtime: ModuleType, clock: Clock) -> None:
    bench = Bench(runtime, 2, 1)
    queue = bench.queue
    bench.arrive("a")
    assert queue.get_delay(False, True) == pytest.approx(0.02)
    bench.arrive("bc")
    assert queue.get_delay(False, True) == 0
    queue.submit()
    assert bench.numbers(queue.waiting) == [2]
    assert queue.get_delay(False, True) is None  # until the first one is forgotten
    (batch,) = queue.finished
    queue.release(batch)
    queue.release(batch)
    assert (dict(queue.batches), dict(queue.claims)) == ({}, {})
    clock.now += 1  # time that the call has taken is not that of a frame
    assert queue.get_delay(False, True) == pytest.approx(0.02)
    queue.submit()
    assert bench.answered == [[0, 1], [2]]
    assert bench.replies() == [b"0", b"1", b"2"]
    assert bench.woken == []


# --- after exceptions, which may arrive anywhere ---------------------------------------


def take(bench: Bench) -> Any:
    assert not bench.queue.jobs.empty()  # it would wait for one
    bench.queue.answer_next()


def work(bench: Bench) -> Any:
    """Be a worker until there is nothing to do."""

    def stop(*arguments: object) -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.runtime, "log_traceback", stop)
        bench.queue.jobs = SimpleNamespace(get=stop)
        with pytest.raises(Stop):
            bench.queue.work()


class Stop(BaseException):
    pass


def begin(bench: Bench, batch: Any) -> Any:
    batch.is_begun = True


Step = Callable[[Bench, Any], Any]


def own(bench: Bench) -> int:
    return int(bench.runtime._thread.get_ident())


# what has happened to the one batch, what mends it; how often it is answered and finished
MENDED: dict[str, tuple[int, Step, Step, int, int]] = {
    "a job": (2, lambda b, x: b.queue.jobs.put(x), lambda b, x: take(b), 1, 1),
    "a job of another thread": (
        2, lambda b, x: (b.queue.jobs.put(x), b.queue.claims.update({x: -1})),
        lambda b, x: take(b), 0, 0),
    "a job that was answered": (
        2, lambda b, x: (b.queue.jobs.put(x), b.queue.release(x)),
        lambda b, x: take(b), 0, 0),
    "a job that was never put": (
        2, lambda b, x: None, lambda b, x: (b.queue.resubmit(), take(b)), 1, 1),
    "a job that a thread has": (
        2, lambda b, x: b.queue.claims.update({x: -1}),
        lambda b, x: (b.queue.resubmit(), b.queue.jobs.empty() or take(b)), 0, 0),
    "a job that this thread has answered": (
        2, lambda b, x: (b.queue.jobs.put(x), take(b)),
        lambda b, x: (b.queue.resubmit(), b.queue.jobs.empty() or take(b)), 1, 1),
    "nobody has begun it": (2, lambda b, x: None, lambda b, x: b.queue.abandon(), 1, 1),
    "a thread that hangs has it": (
        2, lambda b, x: b.queue.claims.update({x: -1}), lambda b, x: b.queue.abandon(), 0, 0),
    "it was abandoned before": (
        2, lambda b, x: b.queue.abandon(), lambda b, x: b.queue.abandon(), 1, 1),
    "the main thread was interrupted before it": (
        1, lambda b, x: None, lambda b, x: b.queue.repair([]), 1, 1),
    "the main thread was interrupted in it": (
        1, begin, lambda b, x: b.queue.repair([]), 0, 1),
    "the main thread was interrupted after it": (
        1, lambda b, x: b.queue.finish(x), lambda b, x: b.queue.repair([]), 1, 1),
    "a thread has it while the main thread repairs": (
        2, lambda b, x: b.queue.claims.update({x: -1}), lambda b, x: b.queue.repair([]), 0, 0),
    "a worker was interrupted before it": (
        2, lambda b, x: b.queue.claims.update({x: own(b)}), lambda b, x: work(b), 1, 1),
    "a worker was interrupted in it": (
        2, lambda b, x: (begin(b, x), b.queue.claims.update({x: own(b)})),
        lambda b, x: work(b), 0, 1),
    "a worker was interrupted after it": (
        2, lambda b, x: (b.queue.claims.update({x: own(b)}), b.queue.finish(x)),
        lambda b, x: work(b), 1, 1),
}  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "happened", "mend", "answered", "finished"), MENDED.values(), ids=MENDED
)
def test_each_batch_is_answered_once_whatever_was_interrupted(
    runtime: ModuleType, limit: int, happened: Step, mend: Step, answered: int, finished: int
) -> None:
    bench = Bench(runtime, 2, limit)
    bench.arrive("ab")
    batch = runtime.Batch(bench.messages[:])
    bench.queue.batches[batch] = None
    bench.queue.waiting.clear()
    happened(bench, batch)
    mend(bench, batch)
    assert bench.answered == [[0, 1]] * answered
    assert list(bench.queue.finished) == [batch] * finished
    replies = [b"0", b"1"] if answered else [runtime.UNPRINTABLE] * 2
    assert bench.replies() == (replies if finished else [None, None])
    assert len(bench.woken) == finished * (limit > 1)


def test_what_an_exception_kept_from_the_queue_is_found_again(runtime: ModuleType) -> None:
    bench = Bench(runtime, 4, 2)
    bench.arrive("abcd")
    queue, (lost, _waiting, in_work, answered) = bench.queue, bench.messages
    queue.waiting.pop(lost)
    queue.batches[runtime.Batch([in_work])] = None  # and it still waits, too
    queue.waiting.pop(answered)
    answered.reply = b"3"
    queue.repair(bench.peers.values())
    assert sorted(bench.numbers(queue.waiting)) == [0, 1]
    assert queue.jobs.get_nowait().messages == [in_work]


def test_what_a_batch_lacks_is_an_error_of_its_own(runtime: ModuleType) -> None:
    bench = Bench(runtime, 2, 1)
    bench.arrive("ab")
    bench.queue.answer = lambda batch: [b"first"]
    bench.queue.submit()
    assert bench.replies() == [b"first", runtime.UNPRINTABLE]


@pytest.mark.parametrize(("is_closed_by_user", "given_up"), [(False, 0), (True, 1)])
def test_a_waker_that_the_server_closes_while_a_thread_uses_it_ends_nothing(
    runtime: ModuleType, monkeypatch: pytest.MonkeyPatch, is_closed_by_user: bool, given_up: int
) -> None:
    """The watch may wake the server just when it has drained and closes all."""
    waker = runtime.Waker()
    reasons: list[str] = []
    write, close = runtime.os.write, runtime.os.close

    def write_late(fd: int, data: bytes) -> int:
        if is_closed_by_user:
            close(fd)
        else:
            waker.close()
        return int(write(fd, data))

    monkeypatch.setattr(runtime.os, "write", write_late)
    # As it is of the system's write()
    monkeypatch.setattr(runtime, "is_raised_here", lambda _: True)
    monkeypatch.setattr(runtime, "give_up", reasons.append)
    waker.wake()
    assert len(reasons) == given_up
    waker.close()
