"""Batches: how they form, what each message is answered, what is tried again."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from .conftest import (
    RUNTIME,
    Client,
    Compiled,
    Process,
    Start,
    changed,
    compile_once,
    eventually,
    frame,
    taken,
)
from .served import RESTARTING, Reply, error, memory_error, ok, stopped

# Each call appends the number of its messages to the file `sizes`; it begins when `go` exists
HANDLER = """
import json, os, time
from pathlib import Path
def note(messages):
    with open("sizes", "a") as file: file.write("%d\\n" % len(messages))
def wait():
    while not os.path.exists("go"): time.sleep(0.002)
def predict(messages):
    note(messages)
    wait()
    return [message["payload"]["n"] for message in messages]
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """A runtime whose batches wait for what is on its way until it is here.

    They wait for 20 ms, so that on a busy machine a batch may begin before it is full.
    """
    copy = tmp_path_factory.mktemp("patient") / "patient.py"
    changed(RUNTIME, copy, {"\nBATCH_PATIENCE = 0.02 ": "\nBATCH_PATIENCE = 600 "})
    return compile_once(tmp_path_factory, copy)


def sizes(folder: Path) -> list[int]:
    file = folder / "sizes"
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def hold(process: Process, folder: Path) -> Client:
    """Let the handler be in a call of one message, which ends when `go` exists."""
    first = process.client()
    first.send(frame({"payload": {"n": -1}}))
    eventually(lambda: sizes(folder) == [1], "the first call")
    return first


def send_all(process: Process, payloads: list[Any], connections: int) -> list[Client]:
    """Send the payloads over some connections, several on each in one piece, in order."""
    clients = [process.client() for _ in range(connections)]
    for at, client in enumerate(clients):
        client.send(b"".join(frame({"payload": one}) for one in payloads[at::connections]))
    return clients


def receive_all(clients: list[Client], count: int) -> list[Reply]:
    """Return the replies in the order of the payloads of `send_all`."""
    return [clients[at % len(clients)].reply() for at in range(count)]


@pytest.mark.parametrize("connections", [1, 3, 20])
def test_a_batch_takes_what_has_arrived_while_the_call_before_it_ran(
    start: Start, folder: Path, connections: int
) -> None:
    source = HANDLER.replace("wait()\n    return", "if len(messages) == 1: wait()\n    return")
    process = start(source, "app.predict", ASYA_BATCH_SIZE="8", ASYA_CONCURRENCY="1")
    first = hold(process, folder)
    clients = send_all(process, [{"n": n} for n in range(20)], connections)
    (folder / "go").touch()
    assert receive_all(clients, 20) == [ok(n) for n in range(20)]
    assert first.reply() == ok(-1)
    assert sizes(folder) == [1, 8, 8, 4]
    stopped(process)


def test_connections_that_waited_for_room_are_read_on(start: Start, folder: Path) -> None:
    process = start(HANDLER, "app.predict", ASYA_BATCH_SIZE="2", ASYA_CONCURRENCY="2")
    busy = [hold(process, folder), process.client()]
    busy[1].send(frame({"payload": {"n": -2}}))
    eventually(lambda: sizes(folder) == [1, 1], "the second call")
    clients = send_all(process, [{"n": n} for n in range(20)], 20)
    for client in clients[:4]:
        taken(client)
    (folder / "go").touch()
    assert receive_all(clients, 20) == [ok(n) for n in range(20)]
    assert [client.reply() for client in busy] == [ok(-1), ok(-2)]
    stopped(process)


@pytest.mark.parametrize(
    "returned",
    [
        "results",
        "tuple(results)",
        "(result for result in results)",
        "type('Array', (), {'tolist': lambda self: results})()",
        "[numpy_like(result) for result in results]",
    ],
)
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_results_of_a_batch_may_be_what_people_return(
    start: Start, returned: str, kind: str
) -> None:
    source = f"""
        def numpy_like(x): return [x][0]
        {kind} predict(messages):
            results = [message["payload"]["n"] for message in messages]
            return {returned}
    """
    process = start(source, "app.predict", ASYA_BATCH_SIZE="4", ASYA_BATCH_WAIT="0.05")
    clients = send_all(process, [{"n": n} for n in range(4)], 2)
    assert receive_all(clients, 4) == [ok(n) for n in range(4)]


def test_an_async_generator_yields_the_results_of_a_batch(start: Start) -> None:
    source = """
        async def predict(messages):
            for message in messages: yield message["payload"]["n"]
    """
    process = start(source, "app.predict", ASYA_BATCH_SIZE="4")
    clients = send_all(process, [{"n": n} for n in range(4)], 1)
    assert receive_all(clients, 4) == [ok(n) for n in range(4)]


ALL = range(8)
# what the handler does with the list `ns`, and the replies to 0 to 7 of those that differ from n
FAILURES: dict[str, tuple[str, dict[int, Reply], list[int]]] = {
    "one result is no JSON": (
        "return [{1} if n == 3 else n for n in ns]",
        {3: error("TypeError", "result is not JSON-serializable at result: set; "
                  "Object of type set is not JSON serializable")},
        [8],
    ),
    "an item is an exception": (
        "return [ValueError('bad') if n == 3 else n for n in ns]",
        {3: error("ValueError", "bad")},
        [8],
    ),
    "an item is a memory error": (
        "return [MemoryError('full') if n == 3 else n for n in ns]",
        {3: memory_error("MemoryError", "full")},
        [8],
    ),
    "an item is an exception with a verdict": (
        "return [Later('busy') if n == 3 else n for n in ns]",
        {3: error("Later", "busy", severity="recoverable", retry_after=2)},
        [8],
    ),
    "one message is bad": (
        "return [n if n != 3 else 1 / 0 for n in ns]",
        {3: error("ZeroDivisionError", "division by zero")},
        [8, 4, 2, 2, 1, 1, 4],
    ),
    "two messages are bad": (
        "return [n if n not in (0, 7) else 1 / 0 for n in ns]",
        {n: error("ZeroDivisionError", "division by zero") for n in (0, 7)},
        [8, 4, 2, 1, 1, 2, 4, 2, 2, 1, 1],
    ),
    "all fail": (
        "raise KeyError(tuple(ns)) if len(ns) > 1 else KeyError(ns[0])",
        {n: error("KeyError", str(n)) for n in ALL},
        [8, 4, 2, 1, 1, 2, 1, 1, 4, 2, 1, 1, 2, 1, 1],
    ),
    "the handler exits": (
        "return ns if 3 not in ns else sys.exit(3)",
        {3: error("SystemExit", "3")},
        [8, 4, 2, 2, 1, 1, 4],
    ),
    "a generator fails in the middle": (
        "return (n if n != 3 else 1 / 0 for n in ns)",
        {3: error("ZeroDivisionError", "division by zero")},
        [8, 4, 2, 2, 1, 1, 4],
    ),
    "the verdict of an exception is that of all": (
        "raise Later('busy')",
        {n: error("Later", "busy", severity="recoverable", retry_after=2) for n in ALL},
        [8],
    ),
    "the handler changes the messages it is given": (
        "for m in messages: m['payload'].pop('n')\n    return ns if len(ns) < 3 else 1 / 0",
        {},
        [8, 4, 2, 2, 4, 2, 2],
    ),
    "too few results": (
        "return ns[1:]",
        {n: error("UnfitResults", "the handler returned 7 results for 8 messages; "
                  "return one for each, in order") for n in ALL},
        [8],
    ),
    "too many results": (
        "return ns + [1]",
        {n: error("UnfitResults", "the handler returned 9 results for 8 messages; "
                  "return one for each, in order") for n in ALL},
        [8],
    ),
    "a list with a wrong length": (
        "return type('Wrong', (list,), {'__len__': lambda self: 8})(ns[1:])",
        {n: error("UnfitResults", "the handler returned 7 results for 8 messages; "
                  "return one for each, in order") for n in ALL},
        [8],
    ),
    "no results": (
        "pass",
        {n: error("UnfitResults", "the handler returned NoneType for 8 messages; "
                  "return a list with one result for each") for n in ALL},
        [8],
    ),
    "an array of dates": (
        "return Dates()",
        {n: error("UnfitResults", "the handler returned app.Dates with dates or durations; "
                  "return a list with their texts") for n in ALL},
        [8],
    ),
    "a dictionary": (
        "return dict.fromkeys(ns)",
        {n: error("UnfitResults", "the handler returned dict for 8 messages; "
                  "return a list with one result for each") for n in ALL},
        [8],
    ),
    "a text": (
        "return '01234567'",
        {n: error("UnfitResults", "the handler returned str for 8 messages; "
                  "return a list with one result for each") for n in ALL},
        [8],
    ),
    "four fit into memory": (
        "return ns if len(ns) <= 4 else gpu()",
        {},
        [8, 4, 4],
    ),
    "one fits into memory": (
        "return ns if len(ns) == 1 else gpu()",
        {},
        [8, 4, 2, 1, 1, 2, 1, 1, 4, 2, 1, 1, 2, 1, 1],
    ),
    "one message does not fit alone": (
        "return ns if 3 not in ns else gpu()",
        {3: memory_error("RuntimeError", "CUDA out of memory", "cuda_oom_error")},
        [8, 4, 2, 2, 1, 1, 4],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("does", "replies", "calls"), FAILURES.values(), ids=FAILURES)
def test_what_fails_in_a_batch_fails_alone(
    start: Start,
    folder: Path,
    python: str,
    does: str,
    replies: dict[int, Reply],
    calls: list[int],
) -> None:
    source = (
        HANDLER
        + f"""
import sys
class Later(Exception): severity, retry_after = "recoverable", 2
class Dates:
    class dtype: kind = "M"
    def tolist(self): return list(range(8))
def gpu(): raise RuntimeError("CUDA out of memory")
def fails(messages):
    note(messages)
    ns = [message["payload"]["n"] for message in messages]
    if ns == [-1]: return wait() or ns
    {does}
"""
    )
    process = start(source, "app.fails", python=python, ASYA_BATCH_SIZE="8")
    first = hold(process, folder)
    clients = send_all(process, [{"n": n} for n in ALL], 1)
    (folder / "go").touch()
    assert receive_all(clients, 8) == [replies.get(n, ok(n)) for n in ALL], process.log()
    assert first.reply() == ok(-1)
    assert sizes(folder) == [1, *calls]
    stopped(process)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_no_message_fails_alone_and_in_its_place(
    start: Start, folder: Path, workers: str
) -> None:
    """Also behind a message in work; one of the replies is too large to be sent with others."""
    process = start(
        HANDLER,
        "app.predict",
        ASYA_BATCH_SIZE="8",
        ASYA_CONCURRENCY=workers,
        ASYA_MAX_MESSAGE_SIZE="70000",
    )
    first = hold(process, folder)
    client, large = process.client(), "x" * 66000
    bodies: list[Any] = [
        {"payload": {"n": 0}}, b" " * 70001, b"{", {"payload": {"n": large}}, {"payload": 1},
        {"payload": {"n": 1}}, b"",
    ]  # fmt: skip
    for one in (client, first):
        one.send(b"".join(map(frame, bodies)))
    if workers == "2":
        taken(first)
    (folder / "go").touch()
    due = [0, "connection_error", "invalid_json", large, "invalid_json", 1, "invalid_json"]
    assert first.reply() == ok(-1)
    for one in (client, first):
        got = [one.reply() for _ in bodies]
        assert [reply.get("error", reply.get("result")) for reply in got] == due


GPU = """
def gpu(): raise RuntimeError("CUDA out of memory")
def fails(messages):
    note(messages)
    ns = [message["payload"]["n"] for message in messages]
    if -1 in ns: wait()
    return gpu() if len(ns) > MOST or -1 in ns and ALONE else ns
"""


@pytest.mark.parametrize(
    ("most", "alone", "later"),
    [
        pytest.param(4, False, [8, 4, 4, 4, 4], id="a batch that did not fit"),
        pytest.param(8, True, [8, 8], id="a message that did not fit alone"),
    ],
)
def test_what_has_fitted_into_memory_is_the_limit_of_later_batches(
    start: Start, folder: Path, most: int, alone: bool, later: list[int]
) -> None:
    source = HANDLER + GPU.replace("MOST", str(most)).replace("ALONE", str(alone))
    process = start(source, "app.fails", ASYA_BATCH_SIZE="8")
    first = hold(process, folder)
    clients = send_all(process, [{"n": n} for n in range(16)], 2)
    (folder / "go").touch()
    assert receive_all(clients, 16) == [ok(n) for n in range(16)]
    full = memory_error("RuntimeError", "CUDA out of memory", "cuda_oom_error")
    assert first.reply() == (full if alone else ok(-1))
    assert sizes(folder) == [1, *later]


def test_a_lost_gpu_context_is_told_to_the_whole_batch_and_ends_the_process(
    start: Start, folder: Path
) -> None:
    """What waits behind the batch is told that the process restarts."""
    source = (
        HANDLER
        + """
def lost(messages):
    if len(messages) == 1: return predict(messages)
    note(messages)
    raise RuntimeError("CUDA error: device-side assert triggered")
"""
    )
    process = start(source, "app.lost", ASYA_BATCH_SIZE="4")
    first = hold(process, folder)
    clients = send_all(process, [{"n": n} for n in range(8)], 2)
    (folder / "go").touch()
    lost = error("RuntimeError", "CUDA error: device-side assert triggered")
    assert first.reply() == ok(-1)
    assert receive_all(clients, 8) in (
        [lost] * 4 + [RESTARTING] * 4,  # each took two of each connection,
        [lost, RESTARTING] * 4,  # or all of one
        [RESTARTING, lost] * 4,
    )
    assert process.wait() == 70
    assert sizes(folder) == [1, 4]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_batch_waits_for_more_until_it_is_full_or_the_process_is_to_end(
    start: Start, folder: Path, workers: str
) -> None:
    (folder / "go").touch()
    process = start(
        HANDLER,
        "app.predict",
        ASYA_BATCH_SIZE="2",
        ASYA_BATCH_WAIT="600",
        ASYA_CONCURRENCY=workers,
    )
    one, two = process.client(), process.client()
    one.send(frame({"payload": {"n": 1}}))
    taken(one)
    two.send(frame({"payload": {"n": 2}}))
    assert (one.reply(), two.reply()) == (ok(1), ok(2))
    one.send(frame({"payload": {"n": 3}}))
    taken(one)
    process.signal()
    assert one.reply() == ok(3)
    assert process.wait() == 0
    assert sizes(folder) == [2, 1]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_message_whose_frame_has_begun_is_waited_for(
    start: Start, folder: Path, workers: str
) -> None:
    (folder / "go").touch()
    process = start(HANDLER, "app.predict", ASYA_BATCH_SIZE="4", ASYA_CONCURRENCY=workers)
    slow, whole = process.client(), process.client()
    data = frame({"payload": {"n": 1, "x": "x" * 500_000}})
    slow.send(data[:9])
    taken(slow)
    whole.send(frame({"payload": {"n": 2}}))
    taken(whole)
    slow.send(data[9:])
    assert (slow.reply(), whole.reply()) == (ok(1), ok(2))
    assert sizes(folder) == [2]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_end_of_a_stream_comes_after_the_replies_to_its_messages(
    start: Start, folder: Path, workers: str
) -> None:
    process = start(HANDLER, "app.predict", ASYA_BATCH_SIZE="2", ASYA_CONCURRENCY=workers)
    first = hold(process, folder)
    client = process.client()
    client.send(b"".join(frame({"payload": {"n": n}}) for n in range(5)) + b"\0\0\0\x09{")
    client.sock.shutdown(1)
    (folder / "go").touch()
    assert [client.reply() for _ in range(5)] == [ok(n) for n in range(5)]
    assert client.reply()["error"] == "connection_error"
    assert client.at_end()
    assert first.reply() == ok(-1)


def test_connections_that_send_without_end_do_not_hold_up_a_batch(
    start: Start, folder: Path
) -> None:
    (folder / "go").touch()
    process = start(
        HANDLER,
        "app.predict",
        argv=[sys.executable, str(RUNTIME)],
        ASYA_BATCH_SIZE="8",
        ASYA_MAX_MESSAGE_SIZE="1000",
    )
    done = threading.Event()

    def send() -> None:
        flood = Client(process.socket)
        flood.send(b"\xff\xff\xff\xff")
        while not done.is_set():
            flood.send(bytes(1_000_000))
        flood.close()

    threads = [threading.Thread(target=send) for _ in range(5)]
    for thread in threads:
        thread.start()
    try:
        assert [process.call({"n": n}) for n in range(5)] == [ok(n) for n in range(5)]
    finally:
        done.set()
        for thread in threads:
            thread.join()
