"""The wrapper: a program and the runtime beside it, started and ended in good order."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import (
    DEADLINE,
    ENTRYPOINT,
    RUNTIME,
    Process,
    Start,
    changed,
    environment,
    eventually,
    frame,
)
from .processes import (
    PID_1,
    children_of,
    command_of,
    environment_of,
    needs_namespace,
    pid_1_of,
    processes,
    state_of,
)

WRAP = [sys.executable, "-I", "-S", str(ENTRYPOINT)]
ECHO = "def echo(message): return message['payload']"
HELD = """
import os, time
def slow(message):
    open("in-handler", "a").close()
    while not os.path.exists("go"): time.sleep(0.01)
    return 1
"""
TRAP = """
import signal, sys, time
signal.signal({n}, lambda *_: sys.exit(7))
print('up', flush=True)
while True: time.sleep(0.05)  # a longer sleep may begin after the signal, and before its handler
"""


def runtime_of(wrapper: int) -> int:
    """Give the pid of the runtime that a wrapper started."""

    def search() -> int:
        return next((pid for pid in children_of(wrapper) if str(RUNTIME) in command_of(pid)), 0)

    found: int = eventually(search, "the runtime")
    return found


def gone(pid: int) -> None:
    eventually(lambda: state_of(pid) in ("", "Z"), f"end of {pid}")


STATUSES = {
    "0": (["true"], 0),
    "3": (["sh", "-c", "exit 3"], 3),
    "killed": (["sh", "-c", "kill -9 $$"], 137),
    "terminated": (["sh", "-c", "kill -15 $$"], 143),
    "no-such-program": (["no-such-program"], 127),
    "no-such-path": (["/no/such/program"], 127),
    "not-executable": ([str(RUNTIME.with_name("README.md"))], 126),
    "a-directory": (["/tmp"], 126),
}


@pytest.mark.parametrize(("argv", "status"), STATUSES.values(), ids=STATUSES)
def test_the_status_of_the_program_is_the_containers(
    start: Start, argv: list[str], status: int
) -> None:
    process = start(ECHO, argv=[*WRAP, "--", *argv], ready=False)
    assert process.wait() == status
    assert not process.socket.exists()


def test_arguments_environment_and_streams_are_the_programs_own(start: Start) -> None:
    code = "import sys, os; print(sys.argv[1:], os.environ['OWN'], file=sys.stderr)"
    odd = ["--", "a b", "$HOME", "*", "", "--runtime", "é"]
    argv = [*WRAP, "--", sys.executable, "-c", code, *odd]
    process = start(ECHO, argv=argv, ready=False, OWN="x")
    assert process.wait() == 0
    assert f"{odd} x\n" in process.log()


def test_message_and_program_are_served_side_by_side(start: Start) -> None:
    process = start(ECHO, argv=[*WRAP, "--", "sleep", "60"])
    assert process.call({"a": 1}) == {"status": "ok", "result": {"a": 1}}
    process.signal()
    assert process.wait() == 143
    assert not process.socket.exists()


def test_the_runtime_runs_as_the_image_would_run_it(start: Start, folder: Path) -> None:
    (folder / "lib").mkdir()
    (folder / "lib" / "asya_lib.py").write_text("name = 'lib'")
    source = """
        import asya_lib, os, sys
        def echo(message): return [asya_lib.name, os.getcwd(), sys.flags.isolated, sys.executable]
    """
    process = start(source, argv=[*WRAP, "--", "sleep", "60"], PYTHONPATH=str(folder / "lib"))
    assert process.call({})["result"] == ["lib", str(folder), 0, sys.executable]


def test_another_runtime_file_may_be_named(start: Start, folder: Path) -> None:
    (folder / "other.py").write_text("open('other-ran', 'w').close(); import time; time.sleep(60)")
    argv = [*WRAP, "--runtime", str(folder / "other.py"), "--", "sleep", "60"]
    process = start(ECHO, argv=argv, ready=False)
    eventually((folder / "other-ran").exists, "other.py")
    process.signal()
    assert process.wait() == 143


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "USR1", "USR2", "TERM", "WINCH"])
def test_signals_reach_the_program(start: Start, name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    argv = [*WRAP, "--", sys.executable, "-c", TRAP.format(n=int(number))]
    process = start(ECHO, argv=argv)
    process.logged("up")
    process.signal(number)
    assert process.wait() == 7
    assert not process.socket.exists()


def test_signals_are_blocked_and_ignored_in_the_program_as_without_the_wrapper(
    start: Start,
) -> None:
    look = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]
    glibc = 0b11 << 31  # its own two signals, which its posix_spawn leaves ignored

    def masks(text: str) -> list[int]:
        return [int(line.split()[1], 16) & ~glibc for line in text.splitlines()]

    process = start(ECHO, argv=[*WRAP, "--", *look], ready=False)
    assert process.wait() == 0
    # Whoever runs the tests may ignore some: nohup, or a shell that starts them in the background.
    plain = subprocess.run(look, capture_output=True, text=True, check=True)
    assert masks(process.log()) == masks(plain.stdout)


def test_a_message_in_the_works_is_answered_after_the_program_has_ended(start: Start) -> None:
    source = """
        import time
        def slow(message):
            open("in-handler", "a").close()
            time.sleep(1)
            return 1
    """
    process = start(source, "app.slow", argv=[*WRAP, "--", "sleep", "60"])
    client = process.client()
    client.send(frame({"payload": {}}))
    eventually((process.folder / "in-handler").exists, "call")
    process.signal()
    assert client.reply() == {"status": "ok", "result": 1}
    assert process.wait() == 143


def test_the_program_is_ended_and_the_status_is_the_runtimes_when_that_ends_first(
    start: Start,
) -> None:
    process = start("1 / 0", argv=[*WRAP, "--", "sleep", "60"], ready=False)
    assert process.wait() == 78
    assert "importing app failed: ZeroDivisionError" in process.log()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, 137), (signal.SIGTERM, 0)])
def test_a_killed_runtime_ends_the_container(
    start: Start, number: signal.Signals, status: int
) -> None:
    code = "import os, signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(print('told')))\n"
    code += "os.write(1, b'up')\nwhile True: time.sleep(0.05)"
    process = start(ECHO, argv=[*WRAP, "--", sys.executable, "-c", code])
    process.logged("up")
    os.kill(runtime_of(process.pid), number)
    assert process.wait() == status
    assert "told\n" in process.log()  # the program, in time to end in good order
    said = f"asya_entrypoint: the runtime exited with status {status}; stopping the container\n"
    assert said in process.log()


def small_limits(folder: Path) -> list[str]:
    """Give the wrapper with small limits: they are constants, a copy saves half a minute."""
    limits = {
        "SECONDS_FOR_APP = 10": "SECONDS_FOR_APP = 0.3",
        "SECONDS_FOR_RUNTIME = 30": "SECONDS_FOR_RUNTIME = 0.3",
    }
    copy = changed(ENTRYPOINT, folder / "entrypoint.py", limits)
    return [*WRAP[:3], copy, "--runtime", str(RUNTIME), "--"]


STUCK = """
    def stuck(message):
        open("in-handler", "a").close()
        while True: pass
"""


def test_a_runtime_that_does_not_end_is_killed_after_the_program(
    start: Start, folder: Path
) -> None:
    wait = "while [ ! -e in-handler ]; do sleep 0.01; done; exit 5"
    process = start(STUCK, "app.stuck", argv=[*small_limits(folder), "sh", "-c", wait])
    server = runtime_of(process.pid)
    process.client().send(frame({"payload": {}}))
    assert process.wait() == 5
    gone(server)


def test_a_second_sigterm_goes_to_the_runtime_when_the_program_has_ended(
    start: Start, folder: Path
) -> None:
    process = start(STUCK, "app.stuck", argv=[*WRAP, "--", "sleep", "60"])
    server = runtime_of(process.pid)
    process.client().send(frame({"payload": {}}))
    eventually((folder / "in-handler").exists, "call")

    def again() -> bool:
        process.signal()
        return process.popen.poll() is not None

    eventually(again, "end")  # the first one's for the program, whose end is the runtime's first
    assert process.wait() == 143
    gone(server)


# what others have written, and what of it is in the one line of the log
TEXTS = {
    "plain": ("no-such-program", "no-such-program"),
    "a line of its own": ("a\nasya_entrypoint: b\r", r"a\u000aasya_entrypoint: b\u000d"),
    "colours": ("\x1b[31mred\x9b", r"\u001b[31mred\u009b"),
    "reversed": ("a\u202eb\u2066", r"a\u202eb\u2066"),
    "no text": (os.fsdecode(b"a\xff"), r"a\udcff"),
    "long": ("x" * 100_000, "x" * 3983),
    "other letters": ("modèle", "modèle"),
}


@pytest.mark.parametrize(("text", "shown"), TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("hook", [[], ["--stop"]], ids=["program", "hook"])
def test_texts_of_others_are_cut_and_escaped_in_the_log(
    folder: Path, text: str, shown: str, hook: list[str]
) -> None:
    ran = subprocess.run(
        [*WRAP, *hook, "--", text], env=environment(folder), capture_output=True, check=False
    )
    said = [one for one in ran.stderr.decode().split("\n") if not one.startswith("asya_runtime")]
    reason = "File name too long" if len(text) > 4096 else "No such file or directory"
    line = f"asya_entrypoint: {shown}" + ("" if len(text) > 4096 else f": {reason}")
    assert (ran.returncode, said) == (126 if len(text) > 4096 else 127, [line, ""])


def test_a_program_that_cannot_start_leaves_no_runtime(start: Start, folder: Path) -> None:
    process = start(ECHO, argv=[*WRAP, "--", "no-such-program"], ready=False)
    assert process.wait() == 127

    def left() -> list[int]:
        return [pid for pid in processes() if f"HOME={folder}" in environment_of(pid)]

    eventually(lambda: not left(), "end of the runtime")


def test_the_status_is_seen_though_sigchld_was_ignored(start: Start) -> None:
    argv = ["env", "--ignore-signal=CHLD", *WRAP, "--", "sh", "-c", "exit 4"]
    assert start(ECHO, argv=argv, ready=False).wait() == 4


FORWARDED = sorted(
    signal.valid_signals()
    - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ}
    - {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
)


def test_every_signal_that_can_be_forwarded_reaches_the_program(start: Start) -> None:
    code = """
import os, signal, sys, time
def say(number, _): os.write(1, b"got %d\\n" % number)
for number in map(int, sys.argv[1:]): signal.signal(number, say)
os.write(1, b"up\\n")
while True: time.sleep(0.05)
"""
    numbers = [str(int(number)) for number in FORWARDED]
    process = start(ECHO, argv=[*WRAP, "--", sys.executable, "-c", code, *numbers])
    process.logged("up")
    last = signal.SIGTERM  # the only one that means something to the wrapper too
    for number in [n for n in FORWARDED if n != last] + [last]:
        process.signal(number)
        process.logged(f"got {int(number)}\n")
    assert process.popen.poll() is None


def test_a_program_that_ignores_sigterm_does_not_keep_the_runtime_from_its_end(
    start: Start, folder: Path
) -> None:
    argv = small_limits(folder)
    code = "import os, signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('up', flush=True)\n"
    until = "while not os.path.exists('go'): time.sleep(0.01)\nraise SystemExit(6)"
    program = [sys.executable, "-c", code + until]
    process = start(ECHO, argv=argv + program)
    process.logged("up")
    server = runtime_of(process.pid)
    process.signal()
    gone(server)
    (folder / "go").touch()
    assert process.wait() == 6
    process = start(ECHO, argv=[*argv, *program[:2], code + "time.sleep(60)"])
    eventually(lambda: process.log().count("up") == 2, "second program")
    os.kill(runtime_of(process.pid), signal.SIGKILL)
    assert process.wait() == 137


def test_the_first_sigterm_after_the_programs_own_end_cuts_no_message_off(
    start: Start, folder: Path
) -> None:
    wait = "while [ ! -e in-handler ]; do sleep 0.01; done; exit 5"
    process = start(HELD, "app.slow", argv=[*WRAP, "--", "sh", "-c", wait])
    server = runtime_of(process.pid)
    client = process.client()
    client.send(frame({"payload": {}}))
    eventually(lambda: children_of(process.pid) == [server], "end of the program")
    process.signal()
    pending = Path(f"/proc/{process.pid}/status")
    eventually(lambda: re.search(r"ShdPnd:\s0+\n", pending.read_text()), "SIGTERM taken")
    (folder / "go").touch()
    assert client.reply() == {"status": "ok", "result": 1}
    assert process.wait() == 5


def test_the_runtime_serves_while_a_program_that_was_told_to_end_takes_its_time(
    start: Start,
) -> None:
    code = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"told"))
os.write(1, b"up")
while True: time.sleep(0.05)
"""
    process = start(ECHO, argv=[*WRAP, "--", sys.executable, "-c", code])
    process.logged("up")
    process.signal()
    process.logged("told")
    for n in range(20):
        assert process.call({"a": n}) == {"status": "ok", "result": {"a": n}}


ENDS = {"at-once": "", "after-the-limit": "trap 'sleep 1; exit 3' TERM; "}


@pytest.mark.parametrize("trap", ENDS.values(), ids=ENDS)
def test_the_runtime_is_told_to_end_once_however_long_its_message_takes(
    start: Start, folder: Path, trap: str
) -> None:
    """A second SIGTERM would end it at once, and its message with it."""
    source = """
        import time
        def slow(message):
            open("in-handler", "a").close()
            time.sleep(3)
            return 1
    """
    program = ["sh", "-c", trap + "echo up; while :; do sleep 0.05; done"]
    process = start(source, "app.slow", argv=[*small_limits(folder), *program])
    process.logged("up")
    client = process.client()
    client.send(frame({"payload": {}}))
    eventually((folder / "in-handler").exists, "call")
    process.signal()
    assert client.reply() == {"status": "ok", "result": 1}
    assert process.wait() == (3 if trap else 143)


def test_a_key_of_the_terminal_reaches_the_program_once_and_the_runtime_never(
    start: Start,
) -> None:
    program = r"""
import os, signal, time
def say(number, _): os.write(1, b"got %d\n" % number)
for number in (signal.SIGINT, signal.SIGUSR1): signal.signal(number, say)
os.write(1, b"up\n")
while True: time.sleep(0.05)
"""
    terminal = r"""
import os, pty, signal, sys
pid, fd = pty.fork()
if pid == 0: os.execv(sys.argv[1], sys.argv[1:])
print("wrapper:", pid, flush=True)
shown = b""
def until(text):
    global shown
    while text not in shown: shown += os.read(fd, 1000)
until(b"up")
while not os.path.exists("app.sock"): pass
os.kill(pid, signal.SIGSTOP)  # until the program has had its own: a second one would be lost in it
os.waitpid(pid, os.WUNTRACED)
os.write(fd, b"\x03")
until(b"got 2")
os.kill(pid, signal.SIGCONT)
os.kill(pid, signal.SIGUSR1)  # of a higher number: whatever else there was has been taken before
until(b"got 10")
print("ints:", shown.count(b"got 2"), flush=True)
signal.pause()
"""
    wrapper = [*WRAP, "--", sys.executable, "-c", program]
    process = start(ECHO, argv=[sys.executable, "-c", terminal, *wrapper])
    process.logged("ints: ")
    assert "ints: 1\n" in process.log()
    server = runtime_of(int(process.log().split("wrapper: ")[1].split()[0]))
    assert os.getpgid(server) == server
    assert process.call({"a": 1}) == {"status": "ok", "result": {"a": 1}}


@needs_namespace
def test_as_pid_1_it_reaps_a_thousand_orphans(start: Start) -> None:
    code = """
import os, pathlib, time
for _ in range(1000):
    if os.fork() == 0:
        if os.fork() == 0: os._exit(0)
        os._exit(0)
    os.wait()
end = time.monotonic() + 20
def zombies():
    states = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try: states.append(path.read_text().rsplit(")", 1)[1].split()[0])
        except OSError: pass
    return states.count("Z")
while zombies() and time.monotonic() < end: time.sleep(0.01)
print("zombies:", zombies())
"""
    argv = [*PID_1, *WRAP, "--", sys.executable, "-c", code]
    process = start(ECHO, argv=argv, ready=False)
    assert process.wait(60) == 0
    assert "zombies: 0" in process.log()


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["true"], ["--"], ["--nonsense", "--", "true"], ["--runtime", "--", "true"]),
        *(["--stop", "--runtime", "x"], ["--detach", "--stop"]),
        *(["--ready", "x"], ["--ready", "--runtime"], ["--ready", "--", "true"]),
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_answered_with_the_usage(
    start: Start, arguments: list[str]
) -> None:
    process = start(ECHO, argv=[*WRAP, *arguments], ready=False)
    assert process.wait() == 64
    assert "asya_entrypoint.py [--runtime FILE] -- COMMAND" in process.log()


# --- hooks: a container of one's own, whose program knows nothing -----------------------


class Container:
    """A PID namespace with a program of its own as PID 1, into which hooks are run."""

    def __init__(self, process: Process, environ: dict[str, str]) -> None:
        self.process, self.environ = process, environ
        self.pid = pid_1_of(process)
        bin_ = process.folder / "bin"
        bin_.mkdir()
        (bin_ / "asya_runtime.py").symlink_to(RUNTIME)
        # A hook that waits for the runtime, however busy the machine is
        self.wrapper = bin_ / "asya_entrypoint.py"
        changed(ENTRYPOINT, self.wrapper, {"FOR_HOOK = 3": "FOR_HOOK = 600"})

    def hook(self, *arguments: str) -> tuple[int, str]:
        folder, command = str(self.process.folder), [*WRAP[:-1], str(self.wrapper), *arguments]
        ran = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-p", "-m", "env", "-C", folder, *command],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=DEADLINE,
            check=False,
        )
        return ran.returncode, ran.stdout.decode()

    def runtime(self) -> int:
        """Give the pid of the detached runtime, as the tests see it."""
        return self.find(" [^ ]*/asya_runtime.py$")[0]

    def find(self, pattern: str) -> list[int]:
        """Give the pids, as the tests see them, of those whose command line has the pattern."""
        search = ["pgrep", "--ns", str(self.pid), "--nslist", "pid", "-f", "--", pattern]
        ran = subprocess.run(search, capture_output=True, text=True, check=False)
        return [int(pid) for pid in ran.stdout.split()]


@pytest.fixture
def container(start: Start, folder: Path) -> Container:
    process = start(ECHO, argv=[*PID_1, "sleep", "600"], ready=False)
    return Container(process, environment(folder, ASYA_HANDLER="app.echo"))


@needs_namespace
def test_a_hook_leaves_the_runtime_running_and_another_ends_it(container: Container) -> None:
    process = container.process
    assert container.hook("--detach", "--", "echo", "chained") == (0, "chained\n")
    process.logged("serving app.echo")
    assert process.call({"a": 1}) == {"status": "ok", "result": {"a": 1}}
    assert container.hook("--stop", "--", "sh", "-c", "exit 4") == (4, "")
    assert not process.socket.exists()
    assert container.hook("--stop") == (0, "")
    assert container.hook("--stop", "--", "sh", "-c", "kill -9 $$") == (137, "")


@needs_namespace
def test_a_detached_runtime_that_dies_is_started_again(container: Container) -> None:
    process = container.process
    assert container.hook("--detach") == (0, "")
    process.logged("serving")  # comes after the socket
    os.kill(container.runtime(), signal.SIGKILL)
    process.logged("the runtime exited with status 137; restarting in 2 s")
    eventually(lambda: process.log().count("serving") == 2, "second start")
    assert process.call({"a": 1}) == {"status": "ok", "result": {"a": 1}}
    assert container.hook("--stop") == (0, "")


@needs_namespace
def test_a_signal_to_the_supervisor_is_the_runtimes_and_only_sigterm_ends_it(
    container: Container,
) -> None:
    assert container.hook("--detach") == (0, "")
    (supervisor,) = container.find("--detach$")
    os.kill(supervisor, signal.SIGUSR1)
    container.process.logged("the runtime exited with status 138; restarting in 2 s")
    assert container.hook("--stop") == (0, "")


@needs_namespace
def test_a_runtime_that_refuses_after_the_hook_is_over_is_tried_again(
    container: Container, folder: Path
) -> None:
    assert container.hook("--detach") == (0, "")
    (folder / "app.py").write_text("1 / 0")
    os.kill(container.runtime(), signal.SIGKILL)
    container.process.logged("the runtime exited with status 78; restarting in 4 s")
    assert container.hook("--stop") == (0, "")


PAUSES = {
    "twice-as-long": ("60", "60", ["2", "4"]),
    "up-to-a-bound": ("60", "2", ["2", "2"]),
    "short-after-a-long-life": ("0", "60", ["1", "1"]),
}


@needs_namespace
@pytest.mark.parametrize(("long_life", "bound", "pauses"), PAUSES.values(), ids=PAUSES)
def test_the_pause_before_the_next_start(
    container: Container, folder: Path, long_life: str, bound: str, pauses: list[str]
) -> None:
    limits = {"> 60 else": f"> {long_life} else", "min(60.0,": f"min({bound}.0,"}
    changed(ENTRYPOINT, container.wrapper, limits)
    (folder / "dies.py").write_text("import os; os._exit(9)")
    assert container.hook("--detach", "--runtime", str(folder / "dies.py")) == (0, "")
    eventually(lambda: container.process.log().count("restarting in") >= 2, "two pauses")
    said = container.process.log().splitlines()
    assert [line.split()[-2] for line in said if "restarting in" in line][:2] == pauses
    assert container.hook("--stop") == (0, "")


CUT = r"a\u001b[31m\u000ab" + "x" * 3992
NO_MORE = "asya_entrypoint: the runtime did not start; see the log of the container\n"
REFUSALS = {
    "in-the-termination-log": ("its line\n", "not asked", 78, "its line\n"),
    "escaped-and-cut": ("a\x1b[31m\nb" + "x" * 5000, "not asked", 78, CUT + "\n"),
    "by-check": ("", "line of --check", 78, "line of --check"),
    "no-more": ("", "", 0, NO_MORE),
}


@needs_namespace
@pytest.mark.parametrize(("log", "check", "status", "output"), REFUSALS.values(), ids=REFUSALS)
def test_the_line_of_a_refusal_is_in_the_output_of_the_hook(
    container: Container, folder: Path, log: str, check: str, status: int, output: str
) -> None:
    place = folder / "termination-log"
    changed(container.wrapper, container.wrapper, {"/dev/termination-log": str(place)})
    (folder / "refuses.py").write_text(
        f"import sys\nif '--check' in sys.argv: print({check!r}, end=''); sys.exit({status})\n"
        f"if {log!r}: open({str(place)!r}, 'w').write({log!r})\nsys.exit(78)"
    )
    argv = ["--detach", "--runtime", str(folder / "refuses.py"), "--", "echo", "chained"]
    assert container.hook(*argv) == (78, output)


@needs_namespace
def test_a_stop_hook_ends_nobody_else(container: Container) -> None:
    others = [("other.py", "--detach"), (str(container.wrapper), "--stop-not")]
    start = "".join(f"sh -c 'sleep 60; :' {n} {w} >/dev/null 2>&1 & " for n, w in others)
    assert container.hook("--detach", "--", "sh", "-c", start) == (0, "")

    def alive() -> list[int]:
        return [len(container.find(f"^sh .*{name} {word}$")) for name, word in others]

    eventually(lambda: alive() == [1, 1], "the others")
    assert container.hook("--stop") == (0, "")
    assert alive() == [1, 1]


@needs_namespace
def test_a_hook_fails_with_the_runtimes_own_line(container: Container) -> None:
    container.environ["ASYA_SOCKET_MODE"] = "9"
    line = "asya_runtime: ASYA_SOCKET_MODE=9: must be octal, 0 to 0777\n"
    assert container.hook("--detach", "--", "echo", "chained") == (78, line)


@needs_namespace
def test_a_hook_returns_after_three_seconds_of_a_long_import(
    container: Container, folder: Path
) -> None:
    (folder / "app.py").write_text("import time; time.sleep(600)")
    changed(ENTRYPOINT, container.wrapper, {})
    began = time.monotonic()
    assert container.hook("--detach") == (0, "")  # by the deadline of a hook here
    assert time.monotonic() - began > 2.9
    assert container.hook("--stop") == (0, "")


def zombies(container: Container) -> list[str]:
    shown = subprocess.run(
        ["nsenter", "-t", str(container.pid), "-p", "-m", "ps", "-eo", "stat,args"],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line for line in shown.stdout.splitlines() if line.startswith("Z")]


@needs_namespace
def test_a_hook_leaves_no_zombie_and_nothing_in_its_own_session(container: Container) -> None:
    """PID 1 is somebody's program, which reaps nobody."""
    assert container.hook("--detach") == (0, "")
    assert zombies(container) == []
    server = container.runtime()
    assert os.getsid(server) not in (os.getsid(0), os.getsid(container.pid))
    assert container.hook("--stop") == (0, "")


@needs_namespace
def test_a_stop_hook_waits_until_the_message_is_answered(
    container: Container, folder: Path
) -> None:
    (folder / "app.py").write_text(HELD)
    container.environ["ASYA_HANDLER"] = "app.slow"
    assert container.hook("--detach") == (0, "")
    client = container.process.client()
    client.send(frame({"payload": {}}))
    eventually((folder / "in-handler").exists, "call")
    answers = ["sh", "-c", "(sleep 0.5; touch go) >/dev/null 2>&1 & exit 0"]
    assert container.hook("--stop", "--", *answers) == (0, "")
    assert (folder / "go").exists()
    assert client.reply() == {"status": "ok", "result": 1}
    assert client.at_end()


@needs_namespace
def test_a_stop_hook_ends_a_supervisor_that_waits_to_start_again(container: Container) -> None:
    changed(container.wrapper, container.wrapper, {"pause * 2": "pause * 600", "60.0,": "600.0,"})
    assert container.hook("--detach") == (0, "")
    os.kill(container.runtime(), signal.SIGKILL)
    container.process.logged("the runtime exited with status 137; restarting in 600 s")
    assert container.hook("--stop") == (0, "")
    assert container.process.log().count("restarting in") == 1


@needs_namespace
def test_a_chained_hook_that_cannot_start_is_said(container: Container) -> None:
    line = "asya_entrypoint: no-such-hook: No such file or directory\n"
    assert container.hook("--detach", "--", "no-such-hook") == (127, line)
    assert container.hook("--stop", "--", "no-such-hook") == (127, line)
    assert not container.process.socket.exists()
