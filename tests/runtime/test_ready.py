"""The commands for readiness probes: the wrapper's is cheap, the runtime's explains."""

from __future__ import annotations

import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import ENTRYPOINT, RUNTIME, Start, run_to_end
from .processes import needs_namespace
from .test_places import REFUSED, with_dev

Result = tuple[int, str]


def probe(file: Path, *options: str, python: str = sys.executable) -> list[str]:
    return [python, "-I", "-S", str(file), "--ready", *options]


def not_ready(path: str, reason: str) -> Result:
    return 1, f"asya_runtime: not ready: {path}: {reason}\n"


def invalid(path: str, reason: str) -> Result:
    return 78, f"asya_runtime: ASYA_SOCKET_PATH={path}: {reason}\n"


READY = (0, "")
ABSENT, REFUSES = "No such file or directory", "Connection refused"
OTHER_TYPE = "Protocol wrong type for socket"
NOT_ABSOLUTE = "must be the absolute path of a file"
TOO_LONG = "must be at most 107 bytes long, the kernel's limit for sockets"
LONGEST = "F/" + "x" * 84  # F: the folder, whose name has 22 characters
TWO_LINES = "F/a\n\udcff.sock"
# ASYA_SOCKET_PATH, and the status and the output; what the wrapper asks the runtime about
QUICK = {
    "listens": ("F/app.sock", READY),
    "white-space-around": (" \tF/app.sock\n", READY),
    "full-backlog": ("F/full.sock", READY),
    "longest-path": (LONGEST, READY),
    "any-bytes": (TWO_LINES, READY),
    "absent": ("F/none.sock", not_ready("F/none.sock", ABSENT)),
    "absent-folder": ("F/none/app.sock", not_ready("F/none/app.sock", ABSENT)),
    "stale": ("F/stale.sock", not_ready("F/stale.sock", REFUSES)),
    "no-socket": ("F/file", not_ready("F/file", REFUSES)),
    "controls": ("F/\x1b\u2028\udcfe", not_ready("F/\\u001b\\u2028\\udcfe", ABSENT)),
}
EXPLAINED = {
    "file-as-folder": ("F/file/x", not_ready("F/file/x", "Not a directory")),
    "datagram-socket": ("F/datagram.sock", not_ready("F/datagram.sock", OTHER_TYPE)),
    "too-long": (LONGEST + "x", invalid(LONGEST + "x", TOO_LONG)),
    "relative": ("app.sock", invalid("app.sock", NOT_ABSOLUTE)),
    "folder": ("F/app.sock/", invalid("F/app.sock/", NOT_ABSOLUTE)),
    "absent-folder": ("F/none/", invalid("F/none/", NOT_ABSOLUTE)),
}


@pytest.fixture
def sockets(folder: Path) -> Iterator[Path]:
    """A folder with what the paths lead to. No connection is ever accepted."""
    (folder / "file").write_text("")
    opened = []
    for path, kind in {
        **dict.fromkeys(["F/app.sock", "F/full.sock", LONGEST, TWO_LINES], socket.SOCK_STREAM),
        "F/stale.sock": socket.SOCK_STREAM,
        "F/datagram.sock": socket.SOCK_DGRAM,
    }.items():
        opened.append(socket.socket(socket.AF_UNIX, kind))
        opened[-1].bind(path.replace("F", str(folder)))
        if kind == socket.SOCK_STREAM and path != "F/stale.sock":
            opened[-1].listen(0 if path == "F/full.sock" else 99)
    opened.append(socket.socket(socket.AF_UNIX))
    opened[-1].connect(str(folder / "full.sock"))
    yield folder
    for sock in opened:
        sock.close()


def run_cases(argv: list[str], sockets: Path) -> list[Result]:
    paths = [path for path, _ in [*QUICK.values(), *EXPLAINED.values()]]
    inside = str(sockets)
    got = [run_to_end(argv, sockets, ASYA_SOCKET_PATH=path.replace("F", inside)) for path in paths]
    return [(status, output.replace(inside, "F")) for status, output in got]


def test_the_wrapper_answers_like_the_runtime(sockets: Path, python: str) -> None:
    expected = [result for _, result in [*QUICK.values(), *EXPLAINED.values()]]
    assert run_cases(probe(ENTRYPOINT, python=python), sockets) == expected
    if python == sys.executable:
        assert run_cases(probe(RUNTIME), sockets) == expected


def test_the_runtime_is_started_only_to_explain(sockets: Path) -> None:
    runtime = sockets / "runtime.py"
    runtime.write_text("import sys; print(sys.argv[1:], sys.flags.isolated, sys.flags.no_site)")
    got = run_cases(probe(ENTRYPOINT, "--runtime", str(runtime)), sockets)
    asked = (0, "['--ready'] 1 1\n")
    assert got == [result for _, result in QUICK.values()] + [asked] * len(EXPLAINED)


def test_a_probe_imports_nothing_but_the_socket(sockets: Path, python: str) -> None:
    """The imports of the wrapper itself would double its time."""

    def list_imports(*argv: str) -> set[str]:
        output = run_to_end([python, "-X", "importtime", "-I", "-S", *argv], sockets)[1]
        return {line.rpartition("|")[2].strip() for line in output.splitlines()}

    (sockets / "empty.py").write_text("")
    imports = list_imports(str(ENTRYPOINT), "--ready") - list_imports(str(sockets / "empty.py"))
    assert imports == {"_socket"}


def test_a_stopped_process_is_ready_and_a_killed_one_is_not(start: Start, folder: Path) -> None:
    """The kernel connects; the restart of a process that hangs is the task of other probes."""
    process = start()
    both = [probe(ENTRYPOINT), probe(RUNTIME)]
    process.signal(signal.SIGSTOP)
    assert [run_to_end(argv, folder) for argv in both] == [READY, READY]
    process.signal(signal.SIGKILL)
    process.wait()
    stale = not_ready(f"{folder}/app.sock", REFUSES)
    assert [run_to_end(argv, folder) for argv in both] == [stale, stale]


def in_container(folder: Path, *commands: str) -> list[str]:
    """Run commands with a termination log, without a file at the default path."""
    empty = "mkdir -p /tmp/sockets; mount -t tmpfs tmpfs /tmp/sockets; unset ASYA_SOCKET_PATH"
    script = "\n".join([with_dev(folder, log=True), empty, "set +e", *commands])
    return ["unshare", "--mount", "sh", "-ec", script]


@needs_namespace
@pytest.mark.parametrize("file", [ENTRYPOINT, RUNTIME], ids=["wrapper", "runtime"])
def test_a_probe_repeats_the_startup_error_and_no_line_of_other_programs(
    folder: Path, file: Path
) -> None:
    (folder / "app.py").write_text("1 / 0")
    ready = shlex.join(probe(file)) + "; echo $?"
    no_runtime = ["--runtime", "/none"] if file == ENTRYPOINT else []  # and none is needed
    again = f": >/dev/termination-log; {shlex.join(probe(file, *no_runtime))}; echo $?"
    serve = shlex.join([sys.executable, str(RUNTIME)]) + " 2>/dev/null"
    argv = in_container(folder, ready, serve, ready, again)
    absent = f"asya_runtime: not ready: /tmp/sockets/app.sock: {ABSENT}"
    assert run_to_end(argv, folder, ASYA_HANDLER="app.x")[1].splitlines() == [
        *(absent, "1"),
        *(f"{absent}; {REFUSED}", "1"),
        *(absent, "1"),
    ]
