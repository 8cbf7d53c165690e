"""The memory limit: memory errors where the kernel would kill, in any container."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from .conftest import RUNTIME, Compiled, Process, Start, eventually, frame
from .served import Case, check, error, memory_error, ok, stopped, write_files

MIB = 1048576
HANDLERS = """
import asyncio, ctypes, json, os, resource, subprocess, sys, threading, time
def limit(): return resource.getrlimit(resource.RLIMIT_DATA)[0]
def counts(m):
    '''The pieces of 10 MiB that can be had, 40 at most. They are not touched.'''
    pieces = []
    try:
        while len(pieces) < 40: pieces.append(bytearray(10 << 20))
    except MemoryError: pass
    return len(pieces)
def fill():
    pieces = []
    for size in (10 << 20, 1 << 16, 1 << 10, 100):
        try:
            while sum(map(len, pieces[:20])) + size * len(pieces) < 200 << 20:
                pieces.append(b"x" * size)
        except MemoryError: pass
    return pieces
def makes(m): return len(b"x" * (m["payload"].get("mib", 0) << 20))
def yields(m):
    for _ in range(m["payload"].get("mib", 0) // 10): yield b"x" * (10 << 20)
async def grows(m):
    pieces = []
    while m["payload"]: pieces.append([pieces])
async def awaits(m):
    await asyncio.sleep(0)
    return makes(m)
def result(m): return ["x" * (m["payload"].get("mib", 0) << 18)] * 4 if m["payload"] else 0
class Wordy(Exception):
    def __str__(self): return str(len(bytearray(50 << 20)))
def wordy(m):
    pieces = fill()
    raise Wordy
def own_class(m):
    class ArrayMemoryError(MemoryError): pass
    raise ArrayMemoryError(str(m["payload"].get("mib", 0)))
def forks(m):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, str(limit()).encode())
        os._exit(0)
    os.wait()
    return [limit() > 0, int(os.read(reader, 99)) == resource.RLIM_INFINITY]
def spawns(m):
    code = "import resource; print(resource.getrlimit(resource.RLIMIT_DATA)[0])"
    return int(subprocess.run([sys.executable, "-c", code], stdout=-1).stdout) == limit() > 0
def own_limit(m):
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 40, 1 << 40))
    return limit()
kept = []
def leaks(m):
    kept.append(b"x" * (10 << 20))
    return len(kept)
def hangs(m):
    pieces = fill()
    time.sleep(60)
def waits(m):
    if m["payload"].get("fail"): return b"x" * (1 << 40)
    pieces = fill() if m["payload"].get("fill") else [0]
    del pieces[0]  # some is left for what follows
    name = m["payload"].get("until", "")
    if name: open(name + ".began", "w").close()
    while name and not os.path.exists(name): time.sleep(0.002)
    return name
"""
LATE = error(
    "HandlerDeadlineExceeded",
    "the call ran longer than 2 s, the deadline of ASYA_HANDLER_DEADLINE",
    severity="recoverable",
    retry_after=1,
)
RESTARTING = {
    "status": "error",
    "error": "processing_error",
    "message": "the process is restarting",
    "severity": "recoverable",
    "retry_after": 1,
}
OOM = memory_error("MemoryError", "MemoryError")
SMALL = str(100 * MIB)
INFINITE = re.compile(r"Max data size +unlimited")


@pytest.fixture
def compiled() -> Compiled:
    """The source itself: the memory that its compiler has used and freed counts here."""
    return lambda _: str(RUNTIME)


def limits(process: Process) -> str:
    return Path(f"/proc/{process.pid}/limits").read_text()


def is_limited(process: Process) -> bool:
    return not INFINITE.search(limits(process))


# --- The container's limit: a stand-in for the kernel's files


def v2(limit: object, used: int, cache: int, folder: str = "cg") -> dict[str, str]:
    """The files of a cgroup, with MiB."""
    return {
        f"{folder}/memory.max": f"{limit * MIB if isinstance(limit, int) else limit}\n",
        f"{folder}/memory.current": f"{used * MIB}\n",
        f"{folder}/memory.stat": f"anon 1\ninactive_file {cache * MIB}\nactive_file 7\n",
    }


def v1(limit: object, used: int, cache: int, folder: str = "cg") -> dict[str, str]:
    return {
        f"{folder}/memory.limit_in_bytes": f"{limit * MIB if isinstance(limit, int) else limit}\n",
        f"{folder}/memory.usage_in_bytes": f"{used * MIB}\n",
        f"{folder}/memory.stat": f"cache 1\ninactive_file 5\ntotal_inactive_file {cache * MIB}\n",
    }


V2 = "30 23 0:26 {root} {folder}/cg rw - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "35 31 0:32 {root} {folder}/cg ro shared:9 - cgroup cgroup rw,memory\n"
OTHERS = (
    "22 1 8:1 / / rw - ext4 /dev/root rw\n"
    "32 31 0:29 / {folder}/cpu rw - cgroup cgroup rw,cpu\n"
    "41 31 0:38 / {folder}/unified rw - cgroup2 cgroup2 rw\n"
)
NO_NUMBER = "9223372036854771712"  # no limit, in version 1
OWN_V1 = "9:name=systemd:/x\n4:cpu,memory:{own}\n0::{own}\n"

# the mount, its root, the process's cgroup, the files; then the pieces of 10 MiB with 50%
CONTAINERS: dict[str, tuple[str, str, str, Mapping[str, str], int]] = {
    "v2": (V2, "/", "/", v2(410, 200, 100), 10),
    "v2, the cache is not in use": (V2, "/", "/", v2(210, 200, 180), 8),
    "v2, without a cgroup namespace": (V2, "/", "/pod/own", v2(410, 100, 0, "cg/pod/own"), 10),
    "v2, the limit is that of the pod": (
        V2, "/", "/pod/own", v2("max", 100, 0, "cg/pod/own") | v2(410, 100, 0, "cg/pod"), 10,
    ),
    "v2, the pod has less left than the container": (
        V2, "/", "/pod/own", v2(800, 10, 0, "cg/pod/own") | v2(410, 100, 0, "cg/pod"), 10,
    ),
    "v2, the container has less left than the pod": (
        V2, "/", "/pod/own", v2(410, 100, 0, "cg/pod/own") | v2(800, 10, 0, "cg/pod"), 10,
    ),
    "v2, a cgroup that cannot be seen": (V2, "/", "/../other", v2(410, 100, 0), 10),
    "v1": (V1, "/", "/", v1(410, 200, 100), 10),
    "v1, in Docker": (V1, "/docker/1", "/docker/1", v1(410, 100, 0), 10),
    "v1, below the mount": (V1, "/docker/1", "/docker/1/a", v1(410, 100, 0, "cg/a"), 10),
    "v1, a name that begins alike": (V1, "/docker/1", "/docker/12", v1(410, 100, 0), 10),
    "v1, nested": (V1, "/", "/a", v1(NO_NUMBER, 9, 0, "cg/a") | v1(410, 100, 0), 10),
}  # fmt: skip
WITHOUT: dict[str, tuple[str, str, str, Mapping[str, str]]] = {
    "v2, max": (V2, "/", "/", v2("max", 100, 0)),
    "v1, a number near 2^63": (V1, "/", "/", v1(NO_NUMBER, 100, 0)),
    "no files": (V2, "/", "/", {}),
    "no mount": ("", "/", "/", v2(410, 100, 0)),
}


def start_in(
    start: Start,
    folder: Path,
    container: tuple[str, str, str, Mapping[str, str]],
    python: str,
    handler: str = "app.counts",
    **environ: str,
) -> Process:
    """Start it where the kernel's files are these."""
    mount, root, own, files = container
    mounts = (OTHERS + mount).format(root=root, folder=folder)
    cgroups = OWN_V1 if mount == V1 else "0::{own}\n"
    write_files(
        folder,
        {**files, "proc/mountinfo": mounts, "proc/cgroup": cgroups.format(own=own)},
    )
    source = RUNTIME.read_text()
    assert source.count('PROC = "/proc/self"') == 1
    copy = folder / "runtime.py"
    copy.write_text(source.replace('PROC = "/proc/self"', f'PROC = "{folder}/proc"'))
    environ = {"ASYA_MEMORY_LIMIT": "50%", **environ}
    return start(HANDLERS, handler, argv=[python, str(copy)], **environ)


@pytest.mark.parametrize("container", CONTAINERS.values(), ids=CONTAINERS)
def test_what_is_left_of_the_containers_limit_can_be_used(
    start: Start, folder: Path, python: str, container: tuple[str, str, str, dict[str, str], int]
) -> None:
    process = start_in(start, folder, container[:4], python)
    client = process.client()
    assert [client.call({"payload": {}}) for _ in range(2)] == [ok(container[4])] * 2
    assert not is_limited(process)
    stopped(process)


@pytest.mark.parametrize("container", WITHOUT.values(), ids=WITHOUT)
def test_a_percentage_needs_a_limit_of_the_container(
    start: Start, folder: Path, container: tuple[str, str, str, dict[str, str]], python: str
) -> None:
    process = start_in(start, folder, container, python)
    assert process.call({}) == ok(40)
    line = "ASYA_MEMORY_LIMIT=50%: the container has no memory limit, so none applies"
    assert process.log().count(line) == 1


def test_the_limit_follows_the_container_while_it_runs(start: Start, folder: Path) -> None:
    process = start_in(start, folder, (V2, "/", "/", v2(410, 100, 0)), sys.executable)
    client = process.client()
    assert client.call({"payload": {}}) == ok(10)
    for limit, used, cache, pieces in (
        (610, 100, 0, 20),  # resized
        (610, 200, 0, 10),  # other processes use more
        (610, 200, 50, 15),  # or read files
        ("max", 200, 0, 40),
        (410, 100, 0, 10),
    ):
        write_files(folder, v2(limit, used, cache))
        eventually(
            lambda pieces=pieces: client.call({"payload": {}}) == ok(pieces),  # type: ignore[misc]
            f"{pieces} pieces",
        )
    (folder / "cg/memory.max").unlink()  # the last reading holds
    (folder / "cg/memory.current").unlink()
    assert client.call({"payload": {}}) == ok(10)


def test_too_little_in_the_container_ends_the_process(start: Start, folder: Path) -> None:
    process = start_in(start, folder, (V2, "/", "/", v2(410, 100, 0)), sys.executable)
    client = process.client()
    assert client.call({"payload": {}}) == ok(10)
    write_files(folder, v2(410, 190, 0))
    eventually(lambda: client.call({"payload": {}}) == RESTARTING, "the end")
    assert process.wait() == 75
    line = "ASYA_MEMORY_LIMIT=50%: less than 16 MiB are left before a call (15 of 205 MiB)"
    assert line in process.log()
    assert "is here" not in process.log()  # stacks are for calls that hang


# --- In each step, for real

BIG: dict[str, object] = {"mib": 200}
STEPS = {
    "call": Case(HANDLERS, [(BIG, OOM), ({}, ok(0))] * 2, handler="app.makes"),
    "generator": Case(HANDLERS, [(BIG, OOM), ({}, ok([]))] * 2, handler="app.yields"),
    "async": Case(HANDLERS, [(BIG, OOM), ({}, ok(0))] * 2, handler="app.awaits"),
    # nothing is left for the event loop then
    "async, in small pieces": Case(HANDLERS, [(BIG, OOM), ({}, ok(None))] * 2, handler="app.grows"),
    "decode": Case(
        HANDLERS, [({"text": "x" * 45 * MIB}, OOM), ({}, ok(0))] * 2, handler="app.makes",
    ),
    "encode": Case(HANDLERS, [({"mib": 120}, OOM), ({}, ok(0))] * 2, handler="app.result"),
    # only where the limit is lifted the text of the exception can be had
    "classify": Case(
        HANDLERS, [({}, error("Wordy", str(50 * MIB)))] * 2, handler="app.wordy",
        logged="app.Wordy: 52428800",
    ),
    "own class": Case(
        HANDLERS, [({}, memory_error("ArrayMemoryError", "0"))], handler="app.own_class",
    ),
    "a forked child has no limit": Case(HANDLERS, [({}, ok([True, True]))], handler="app.forks"),
    "a program has it": Case(HANDLERS, [({}, ok(True))], handler="app.spawns"),
    "user code sets its own": Case(HANDLERS, [({}, ok(1 << 40))] * 2, handler="app.own_limit"),
}  # fmt: skip


@pytest.mark.parametrize("case", STEPS.values(), ids=STEPS)
def test_a_memory_error_is_answered_and_the_next_message_served(
    start: Start, folder: Path, python: str, case: Case
) -> None:
    check(start, folder, case, python, ASYA_MEMORY_LIMIT=SMALL)


@pytest.mark.parametrize("case", STEPS.values(), ids=STEPS)
def test_workers_answer_memory_errors_too(start: Start, folder: Path, case: Case) -> None:
    check(start, folder, case, sys.executable, ASYA_MEMORY_LIMIT=SMALL, ASYA_CONCURRENCY="2")


@pytest.mark.parametrize("handler", ["makes", "yields"])
def test_memory_is_given_back(start: Start, python: str, handler: str) -> None:
    process = start(HANDLERS, f"app.{handler}", python=python, ASYA_MEMORY_LIMIT=SMALL)
    client = process.client()
    for _ in range(5):
        assert client.call({"payload": BIG}) == OOM
        pages = [int(n) for n in Path(f"/proc/{process.pid}/statm").read_text().split()]
        assert (pages[1] - pages[2]) * 4096 < 50 * MIB
        assert client.call({"payload": {}})["status"] == "ok"
    assert not is_limited(process)


def test_without_the_setting_nothing_is_limited(start: Start) -> None:
    process = start(HANDLERS, "app.counts")
    assert process.call({}) == ok(40)
    assert "MEMORY_LIMIT" not in process.log()


def test_json_is_that_of_the_standard_library(start: Start) -> None:
    process = start(HANDLERS, "app.counts", ASYA_MEMORY_LIMIT=SMALL)
    process.logged("JSON: standard library, because ASYA_MEMORY_LIMIT is set")


@pytest.mark.parametrize("concurrency", ["1", "2"])
def test_a_leak_ends_the_process_with_75(start: Start, python: str, concurrency: str) -> None:
    process = start(
        HANDLERS,
        "app.leaks",
        python=python,
        ASYA_MEMORY_LIMIT=SMALL,
        ASYA_CONCURRENCY=concurrency,
    )
    client = process.client()
    replies = [client.call({"payload": {}})]
    while replies[-1] != RESTARTING and len(replies) < 100:
        replies.append(client.call({"payload": {}}))
    assert replies[-1] == RESTARTING
    good = [reply for reply in replies if reply["status"] == "ok"]
    assert good == [ok(n) for n in range(1, len(good) + 1)]
    assert len(good) > 4
    assert all(reply == OOM for reply in replies[len(good) : -1])
    assert process.wait() == 75
    assert not process.socket.exists()


# --- Overlapping calls, batches, deadline


def test_the_limit_holds_until_the_last_overlapping_call_ends(start: Start, folder: Path) -> None:
    process = start(HANDLERS, "app.waits", ASYA_MEMORY_LIMIT=SMALL, ASYA_CONCURRENCY="3")
    first, second, third = (process.client() for _ in range(3))
    for client, name in ((first, "one"), (second, "two")):
        client.send(frame({"payload": {"until": name}}))
        eventually((folder / f"{name}.began").exists, "the call")
    assert is_limited(process)
    assert third.call({"payload": {"fail": True}})["error"] == "oom_error"
    eventually(lambda: is_limited(process), "the limit, after the exception")
    (folder / "one").touch()
    assert first.reply() == ok("one")
    assert is_limited(process)
    (folder / "two").touch()
    assert second.reply() == ok("two")
    eventually(lambda: not is_limited(process), "no limit")
    stopped(process)


def test_messages_are_answered_while_a_call_has_all_memory(start: Start, folder: Path) -> None:
    process = start(HANDLERS, "app.waits", ASYA_MEMORY_LIMIT=SMALL, ASYA_CONCURRENCY="2")
    first, second = process.client(), process.client()
    first.send(frame({"payload": {"until": "one", "fill": True}}))
    eventually((folder / "one.began").exists, "the call")
    reply = second.call({"payload": {"text": "x" * 30 * MIB}})
    assert (reply["error"], reply["severity"]) == ("oom_error", "recoverable")
    (folder / "one").touch()
    assert first.reply() == ok("one")
    assert second.call({"payload": {}}) == ok("")
    stopped(process)


def test_a_batch_is_halved_until_it_fits(start: Start, folder: Path, python: str) -> None:
    source = """
        def predict(messages):
            with open("sizes", "a") as file: file.write("%d " % len(messages))
            return [len(one) for one in [b"x" * (30 << 20) for m in messages]]
    """
    process = start(
        source,
        "app.predict",
        python=python,
        ASYA_MEMORY_LIMIT=SMALL,
        ASYA_BATCH_SIZE="4",
        ASYA_BATCH_WAIT="10",
    )
    client = process.client()
    client.send(frame({"payload": {}}) * 4)
    assert [client.reply() for _ in range(4)] == [ok(30 * MIB)] * 4
    assert (folder / "sizes").read_text() == "4 2 2 "
    assert not is_limited(process)


def test_the_limit_is_on_again_after_a_message_of_a_batch_has_failed(start: Start) -> None:
    """The first is no message, the second is not JSON-serializable: after each there is a limit."""
    source = """
        import resource
        class Late:
            def tolist(self): return resource.getrlimit(resource.RLIMIT_DATA)[0] > 0
        def predict(messages):
            limited = resource.getrlimit(resource.RLIMIT_DATA)[0] > 0
            return [limited if m["payload"]["n"] else {1} for m in messages[:-1]] + [Late()]
    """
    process = start(
        source, "app.predict", ASYA_MEMORY_LIMIT=SMALL, ASYA_BATCH_SIZE="4", ASYA_BATCH_WAIT="10"
    )
    client = process.client()
    client.send(frame(b"{") + b"".join(frame({"payload": {"n": n}}) for n in range(3)))
    got = [client.reply() for _ in range(4)]
    assert got[0]["error"] == "invalid_json"
    assert got[1]["error"] == "processing_error"
    assert got[2:] == [ok(True), ok(True)]


def test_a_late_call_that_has_all_memory_is_answered(start: Start, python: str) -> None:
    process = start(
        HANDLERS,
        "app.hangs",
        python=python,
        ASYA_MEMORY_LIMIT=SMALL,
        ASYA_HANDLER_DEADLINE="2",
    )
    client = process.client()
    client.send(frame({"payload": {}}) * 2)
    eventually(lambda: process.popen.poll() is not None, "the end")
    assert process.wait() == 75, process.log()
    assert [client.reply(), client.reply()] == [LATE, RESTARTING]
