"""Where it runs: file systems, PID namespaces, terminals and locks as a container has them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from .conftest import DEADLINE, ENTRYPOINT, RUNTIME, Start, environment, eventually, frame
from .processes import needs_namespace, open_files, pid_1_of

ECHO = "def echo(message): return message['payload']"
ONE = {"status": "ok", "result": 1}
SERVE = [sys.executable, str(RUNTIME)]
WRAP = [sys.executable, "-I", "-S", str(ENTRYPOINT)]


def in_mounts(script: str, *argv: str) -> list[str]:
    """Run a program after `script`, in a mount namespace of its own."""
    return ["unshare", "--mount", "sh", "-ec", script + '\nexec "$@"', "sh", *argv]


# --- file systems ----------------------------------------------------------------------


@needs_namespace
@pytest.mark.parametrize("inner", ["", "/made/for/it"], ids=["parent", "to-be-made"])
def test_a_read_only_parent_is_one_readable_line(start: Start, folder: Path, inner: str) -> None:
    (folder / "sockets").mkdir()
    mount = f"mount -t tmpfs -o ro tmpfs {folder}/sockets"
    path = f"{folder}/sockets{inner}/app.sock"
    process = start(argv=in_mounts(mount, *SERVE), ready=False, ASYA_SOCKET_PATH=path)
    assert process.wait() == 78
    what = f"socket directory {folder}/sockets{inner}" if inner else f"socket {path}"
    assert process.log() == f"asya_runtime: {what}: Read-only file system\n"


def with_dev(folder: Path, log: bool) -> str:
    """Give a script for a /dev with what a container has there."""
    dev = shlex.quote(str(folder / "dev"))
    return f"""
        mkdir {dev}; mount -t tmpfs tmpfs {dev}
        for name in null urandom; do touch {dev}/$name; mount --bind /dev/$name {dev}/$name; done
        {f"echo left by the container before > {dev}/termination-log" if log else ""}
        mount --rbind {dev} /dev
    """


REFUSED = "importing app failed: ZeroDivisionError: division by zero"


@needs_namespace
def test_the_line_is_where_kubernetes_shows_it(start: Start, folder: Path) -> None:
    after = 'set +e; "$@"; status=$?; cp /dev/termination-log said; exit $status'
    argv = ["unshare", "--mount", "sh", "-ec", with_dev(folder, log=True) + after, "sh", *SERVE]
    process = start("1 / 0", argv=argv, ready=False)
    assert process.wait() == 78
    line = f"asya_runtime: {REFUSED}\n"
    assert (folder / "said").read_text() == line
    assert process.log().endswith(line)


@needs_namespace
def test_a_termination_log_is_not_made_where_there_is_none(start: Start, folder: Path) -> None:
    after = 'set +e; "$@"; status=$?; ls /dev > entries; exit $status'
    argv = ["unshare", "--mount", "sh", "-ec", with_dev(folder, log=False) + after, "sh", *SERVE]
    assert start("1 / 0", argv=argv, ready=False).wait() == 78
    assert (folder / "entries").read_text().split() == ["null", "urandom"]


def test_a_start_waits_while_another_looks_at_the_same_folder(start: Start, folder: Path) -> None:
    """Between the look at what is there and its removal nobody else may come."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        process = start(ready=False)
        eventually(lambda: str(folder) in open_files(process.pid), "the attempt to lock")
        assert [entry.name for entry in folder.iterdir() if entry.is_socket()] == []
    finally:
        os.close(directory)
    assert process.ready().call({"a": 1}) == {"status": "ok", "result": {"a": 1}}


def test_a_start_ends_with_one_line_where_another_keeps_the_lock(
    start: Start, folder: Path
) -> None:
    """The limit is a constant: a copy with a short one saves 10 s."""
    copy = folder / "runtime.py"
    copy.write_text(RUNTIME.read_text().replace("LOCK_TIME = 10.0", "LOCK_TIME = 0.2"))
    directory = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        process = start(argv=[sys.executable, str(copy)], ready=False)
        assert process.wait() == 78
    finally:
        os.close(directory)
    line = f"another process has held the lock (flock) of {folder} for 0.2 s; end it"
    assert process.log() == f"asya_runtime: {line}\n"


@pytest.mark.parametrize("umask", ["000", "022", "077", "777"])
@pytest.mark.parametrize("mode", ["0660", "0777", "0600", "0"])
def test_the_socket_has_its_mode_under_each_umask_and_user_code_keeps_that(
    start: Start, umask: str, mode: str
) -> None:
    source = "import os\ndef echo(message): return '%03o' % os.umask(0)"
    argv = ["sh", "-c", f'umask {umask}; exec "$@"', "sh", *SERVE]
    process = start(source, argv=argv, ASYA_SOCKET_MODE=mode, PYTHONDONTWRITEBYTECODE="1")
    assert stat.S_IMODE(process.socket.stat().st_mode) == int(mode, 8)
    assert process.call({}) == {"status": "ok", "result": umask}


def test_a_link_in_the_place_of_the_new_socket_is_not_followed(
    runtime: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = folder / "victim"
    victim.touch(0o600)

    def replace(mask: int) -> int:
        before = os.umask(mask)
        for entry in folder.glob(".asya-*"):  # bound a moment ago
            entry.unlink()
            entry.symlink_to(victim)
        return before

    monkeypatch.setattr(runtime.os, "umask", replace)
    with pytest.raises(runtime.StartupError, match="was replaced by another process"):
        runtime.open_listener(str(folder / "app.sock"), 0o666)
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_a_mode_that_cannot_be_had_is_one_line(
    runtime: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """As with a default ACL of the directory, which replaces the umask."""
    before = os.umask(0o022)
    try:
        monkeypatch.setattr(runtime.os, "umask", lambda mask: mask)
        runtime.open_listener(str(folder / "app.sock"), 0o660).close()
    finally:
        os.umask(before)
    reason = "gets the mode 0755, not 0660: the directory has a default ACL"
    assert capfd.readouterr().err == f"asya_runtime: {folder}/app.sock {reason}\n"


def test_of_two_starts_at_once_one_serves_and_the_other_says_so(start: Start, folder: Path) -> None:
    for _ in range(3):
        pair = [start(ready=False) for _ in range(2)]
        eventually(lambda pair=pair: any(p.popen.poll() is not None for p in pair), "one's end")  # type: ignore[misc]
        (loser,) = [p for p in pair if p.popen.poll() is not None]
        (winner,) = [p for p in pair if p is not loser]
        assert loser.wait() == 78
        assert winner.ready().call({"a": 1})["status"] == "ok"
        winner.signal()
        assert winner.wait() == 0
    assert winner.log().count(f"another process is serving {folder}/app.sock") == 3


def test_the_end_leaves_a_socket_that_has_taken_its_place(start: Start, folder: Path) -> None:
    process = start()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(folder / "other.sock"))
        (folder / "other.sock").rename(process.socket)
        process.signal()
        assert process.wait() == 0
        assert process.socket.is_socket()


# --- PID 1 -----------------------------------------------------------------------------


IN_C = "__import__('hashlib').pbkdf2_hmac('md5', b'', b'', 10**9)"  # minutes, deaf to signals
STATES = {
    "importing": (f"open('here', 'w').close()\n{IN_C}", 0),
    "idle": ("def echo(message): return 1\nopen('here', 'w').close()", 0),
    "in-handler": (
        "import time\ndef echo(message):\n open('here', 'w').close()\n time.sleep(0.3)\n return 1",
        0,
    ),
}


@needs_namespace
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("wrapped", [False, True], ids=["runtime", "wrapper"])
def test_as_pid_1_sigterm_is_heard_in_every_state(
    start: Start, folder: Path, state: str, wrapped: bool
) -> None:
    source, status = STATES[state]
    program = [*WRAP, "--", "sleep", "60"] if wrapped else SERVE
    argv = ["unshare", "--pid", "--fork", "--kill-child", *program]
    process = start(source, argv=argv, ready=state != "importing")
    client = process.client() if state != "importing" else None
    if client:
        client.send(frame({"payload": {}}))
    eventually((folder / "here").exists, state)
    os.kill(pid_1_of(process), signal.SIGTERM)
    if client:
        assert client.reply() == ONE
    assert process.wait() == (143 if wrapped else status)


@needs_namespace
def test_as_pid_1_a_second_sigterm_ends_it(start: Start, folder: Path) -> None:
    source = f"def slow(message):\n open('here', 'w').close()\n {IN_C}"
    argv = ["unshare", "--pid", "--fork", "--kill-child", *SERVE]
    process = start(source, "app.slow", argv=argv)
    process.client().send(frame({"payload": {}}))
    eventually((folder / "here").exists, "the handler's call")
    pid = pid_1_of(process)
    os.kill(pid, signal.SIGTERM)

    def second() -> bool:  # two of them at the same instant are one
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        return process.popen.poll() is not None

    eventually(second, "the end")
    assert process.wait() == 143


# --- a terminal ------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_ctrl_c_reaches_the_program_once_and_the_runtime_not_at_all(
    folder: Path, terminal: tuple[int, int]
) -> None:
    ours, theirs = terminal
    (folder / "app.py").write_text("def echo(message):\n return 1")
    program = """
import os, signal, time
count = []
signal.signal(signal.SIGINT, lambda *_: count.append(1))
open("up", "w").close()
while not os.path.exists("asked"): time.sleep(0.01)
os.write(1, b"interrupts: %d\\n" % len(count))
"""
    with (folder / "log").open("wb") as log:
        popen = subprocess.Popen(
            ["setsid", "--ctty", *WRAP, "--", sys.executable, "-c", program],
            env=environment(folder, ASYA_HANDLER="app.echo"),
            cwd=folder,
            stdin=theirs,
            stdout=log,
            stderr=log,
        )
    try:
        eventually(lambda: (folder / "up").exists() and (folder / "app.sock").exists(), "start")
        os.write(ours, b"\x03")
        eventually(lambda: b"^C" in os.read(ours, 100), "the terminal's echo")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(folder / "app.sock"))
            sock.settimeout(DEADLINE)
            sock.sendall(frame({"payload": {}}))
            assert sock.recv(100)[4:] == b'{"status":"ok","result":1}'
        (folder / "asked").touch()
        assert popen.wait(DEADLINE) == 0
        assert "interrupts: 1\n" in (folder / "log").read_text()
    finally:
        popen.kill()
        popen.wait()
