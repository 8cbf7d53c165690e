"""The runtime as a process: started with a handler's source, spoken to over its socket."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "runtime" / "asya_runtime.py"
ENTRYPOINT = ROOT / "runtime" / "asya_entrypoint.py"
DEADLINE = 20.0


def frame(message: object) -> bytes:
    body = message if isinstance(message, bytes) else json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body


def eventually(condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    pytest.fail(f"{what}: not within {seconds} s")


def changed(file: Path, copy: Path, texts: Mapping[str, str]) -> str:
    """Write a copy with other texts, such as limits that a test cannot wait for; give its path."""
    source = file.read_text()
    for old, new in texts.items():
        assert old in source, old
        source = source.replace(old, new)
    copy.write_text(source)
    return str(copy)


class Client:
    """One connection."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.connect(str(path))  # waits while the backlog is full, as no timeout would
        except OSError:
            self.sock.close()
            raise
        self.sock.settimeout(DEADLINE)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self.sock.recv(size - len(data))
            if not piece:
                raise EOFError(f"{len(data)} of {size} bytes")
            data += piece
        return bytes(data)

    def reply(self) -> dict[str, Any]:
        body = self.exactly(int.from_bytes(self.exactly(4), "big"))
        try:
            loaded: dict[str, Any] = json.loads(body, parse_constant=pytest.fail)
        except RecursionError:  # another interpreter wrote what is too deep for this one
            return {"status": body.split(b'"', 4)[3].decode()}
        return loaded

    def call(self, message: object) -> dict[str, Any]:
        self.send(frame(message))
        return self.reply()

    def at_end(self) -> bool:
        return self.sock.recv(1) == b""

    def close(self) -> None:
        self.sock.close()


def taken(client: Client) -> None:
    """Wait until the process has received all that the client has sent."""

    def left() -> int:
        unread = fcntl.ioctl(client.sock, termios.TIOCOUTQ, struct.pack("i", -1))
        return int(struct.unpack("i", unread)[0])

    eventually(lambda: left() == 0, "that all is received")


class Process:
    """A runtime, or the wrapper, with its folder, its log and its connections."""

    def __init__(self, folder: Path, argv: list[str], environ: dict[str, str]) -> None:
        self.folder = folder
        self.socket = Path(environ.get("ASYA_SOCKET_PATH", folder / "app.sock"))
        self.log_file = folder / "log"
        self.clients: list[Client] = []
        with self.log_file.open("ab") as log:
            self.popen = subprocess.Popen(
                argv, env=environ, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def ready(self) -> Process:
        def is_there() -> bool:
            if self.popen.poll() is not None:
                pytest.fail(f"ended with {self.popen.returncode}:\n{self.log()}")
            return self.socket.exists()

        eventually(is_there, "socket")
        return self

    def logged(self, text: str) -> None:
        eventually(lambda: text in self.log(), f"{text!r} in the log")

    def client(self) -> Client:
        self.clients.append(Client(self.socket))
        return self.clients[-1]

    def call(self, payload: object) -> dict[str, Any]:
        client = Client(self.socket)
        try:
            return client.call({"payload": payload})
        finally:
            client.close()

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.popen.send_signal(number)

    def signal_taken(self) -> None:
        """Wait until no signal is pending: the next one is another, although it is the same."""
        status = Path(f"/proc/{self.pid}/status")
        eventually(lambda: re.search(r"\nShdPnd:\s0+\n", status.read_text()), "signals taken")

    def wait(self, seconds: float = DEADLINE) -> int:
        return self.popen.wait(seconds)

    def end(self) -> None:
        for client in self.clients:
            client.close()
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait(DEADLINE)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Give what a container has, and nothing of the machine that runs the tests."""
    base = {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8"}
    return base | {"ASYA_SOCKET_PATH": str(folder / "app.sock")} | more


def run_to_end(
    argv: list[str], folder: Path, *, stdin: bytes = b"", **environ: str
) -> tuple[int, str]:
    """Run a command in the folder; return its exit status and all that it printed."""
    ran = subprocess.run(
        argv,
        env=environment(folder, **environ),
        cwd=folder,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=DEADLINE,
        check=False,
    )
    return ran.returncode, ran.stdout.decode()


Start = Callable[..., Process]
Compiled = Callable[[str], str]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: the path of a socket is at most 107 bytes."""
    path = Path("/tmp") / f"asya-{os.urandom(6).hex()}"
    path.mkdir()
    yield path
    for process in os.scandir("/proc"):  # what outlived a wrapper that was killed
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"{process.path}/cwd") == str(path):  # noqa: PTH115 # four times as fast
                    os.kill(int(process.name), signal.SIGKILL)
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Give the path of the runtime's bytecode for an interpreter.

    Compiling takes more than half of the CPU time of a start. test_pythons.py starts the source.
    """
    return compile_once(tmp_path_factory, RUNTIME)


def compile_once(tmp_path_factory: pytest.TempPathFactory, source: Path) -> Compiled:
    """Give a function that returns the path of the bytecode of a file for an interpreter."""
    folder = tmp_path_factory.mktemp("bytecode")
    code = "import py_compile, sys; py_compile.compile(*sys.argv[1:], doraise=True)"

    @functools.cache
    def compile_for(python: str) -> str:
        path = folder / f"{len(list(folder.iterdir()))}.pyc"
        subprocess.run([python, "-c", code, str(source), str(path)], check=True)
        return str(path)

    return compile_for


@pytest.fixture
def start(folder: Path, compiled: Compiled) -> Iterator[Start]:
    """Start a runtime with `source` as handler module `app`; `ready=False`: do not wait."""
    started: list[Process] = []

    def start_one(
        source: str = "def echo(message): return message['payload']",
        handler: str = "app.echo",
        *,
        python: str = sys.executable,
        argv: list[str] | None = None,
        ready: bool = True,
        **environ: str,
    ) -> Process:
        (folder / "app.py").write_text(textwrap.dedent(source))
        process = Process(
            folder,
            argv or [python, compiled(python)],
            environment(folder, ASYA_HANDLER=handler, **environ),
        )
        started.append(process)
        return process.ready() if ready else process

    yield start_one
    for process in started:
        process.end()


@pytest.fixture(scope="session")
def runtime() -> ModuleType:
    """The runtime's file as a module, for its pure functions and tables."""
    spec = importlib.util.spec_from_file_location("asya_runtime_under_test", RUNTIME)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def interpreters() -> list[str]:
    """Find every CPython that really runs here, the running one first."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [sys.executable, *map(str, sorted(versions.glob("3.*/bin/python3")))]
    found += os.environ.get("ASYA_TEST_PYTHONS", "").split(":")  # more of them
    found += [f"python3.{minor}" for minor in range(6, 20)]
    by_version: dict[str, str] = {}
    for name in found:
        path = shutil.which(name)
        if not path or Path(path).name.removeprefix("python") in by_version:  # shims are slow
            continue
        code = "import sys; print('.'.join(map(str, sys.version_info[:2])))"
        ran = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
        if ran.returncode == 0:
            by_version.setdefault(ran.stdout.strip(), path)
    return [f"{version}={path}" for version, path in by_version.items()]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, supported in (("python", True), ("old_python", False)):
        if name in metafunc.fixturenames:
            pairs = [one.split("=", 1) for one in interpreters()]
            chosen = [p for p in pairs if (int(p[0].split(".")[1]) >= 9) == supported]
            metafunc.parametrize(name, [p[1] for p in chosen], ids=[p[0] for p in chosen])
