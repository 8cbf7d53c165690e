#!/usr/bin/env python3
"""Start asya_runtime.py beside the program of a container, and end both in good order.

    asya_entrypoint.py [--runtime FILE] -- COMMAND ARGS...
        Run COMMAND with the runtime beside it. Signals go to COMMAND; its status is ours. If
        the runtime ends first, COMMAND is ended and the runtime's status is ours.
    asya_entrypoint.py --detach [--runtime FILE] [-- HOOK COMMAND...]
        For a postStart hook: leave the runtime running, restart it when it ends, return when
        it serves or after 3 seconds; then run the hook that was there before.
    asya_entrypoint.py --stop [-- HOOK COMMAND...]
        For a preStop hook: run the hook that was there before, then end the detached runtime
        and wait until its message is answered.

Run it as `python3 -I -S`: what the image has in PYTHONPATH or site-packages is for the
runtime, not for this. No shell, ever. All signals are blocked and taken one at a time by
`sigtimedwait`, so there are no handlers and no races; children get the mask as it was.
"""

import errno
import os
import signal
import sys
import time

if sys.version_info < (3, 9):  # plain words instead of a traceback: this file parses on 3.6
    sys.stderr.write(
        "asya_entrypoint: needs Python 3.9 or newer, this is %s (%s)\n"
        % (sys.version.split()[0], sys.executable)
    )
    sys.exit(78)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXIT_USAGE = 64
EXIT_REFUSED = 78  # the runtime's: its settings or its handler are wrong
SECONDS_FOR_APP = 10  # between the first SIGTERM and the runtime's own
SECONDS_FOR_RUNTIME = 30  # to answer its message, when nobody else's clock is running
SECONDS_FOR_HOOK = 3
IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # and inherited, if nothing were done


def log(text: str) -> None:
    """Write one line to fd 2."""
    try:
        os.write(2, ("asya_entrypoint: %s\n" % text).encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # nobody is left to be told


def spawn(argv: "Sequence[str]", mask: "set[int]", group: bool = False) -> int:
    """Start a program as the shell would find it; give its pid.

    Raises OSError. `group`: in a process group of its own, away from the terminal's keys.
    """
    return os.posix_spawnp(
        argv[0],
        list(argv),
        os.environ,
        setsigmask=mask,
        setsigdef=IGNORED_BY_PYTHON,
        **({"setpgroup": 0} if group else {}),  # type: ignore[arg-type]
    )


def spawn_failure(argv: "Sequence[str]", error: OSError) -> int:
    """Say why a program did not start; give the status a shell would give."""
    log("%s: %s" % (argv[0], error.strerror))
    return 127 if error.errno == errno.ENOENT else 126


def runtime_argv(runtime: str) -> "list[str]":
    """Give the command of the runtime: never isolated, the handler needs venv and PYTHONPATH."""
    return [sys.executable or "python3", runtime]


def tell(pid: int, number: int) -> None:
    """Signal a child that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # reaped in the next turn


def status_of(code: int) -> int:
    """Give the status as a shell says it: 128 + n when signal n ended the process."""
    number = os.waitstatus_to_exitcode(code)
    return number if number >= 0 else 128 - number


def reap(known: "Sequence[int]") -> "dict[int, int]":
    """Collect every child that has ended, adopted orphans included; give those we know."""
    ended: "dict[int, int]" = {}
    while True:
        try:
            pid, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        if pid in known:
            ended[pid] = status_of(code)


def take_signals() -> "tuple[set[int], Callable[[float | None], int]]":
    """Block all signals; give the mask from before and `wait(seconds)`.

    `wait` gives the number of the signal that came, or 0. What the terminal sent (Ctrl-C) is 0
    too: COMMAND, in the same process group, has had it already.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would hide the status
    synchronous = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
    taken = signal.valid_signals() - synchronous - set(IGNORED_BY_PYTHON)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, taken)

    def wait(seconds: "float | None") -> int:
        if seconds is None:
            info: "signal.struct_siginfo | None" = signal.sigwaitinfo(taken)
        else:
            info = signal.sigtimedwait(taken, max(0.0, seconds))
        if info is None or (info.si_code > 0 and info.si_signo != signal.SIGCHLD):
            return 0
        return info.si_signo

    return {int(number) for number in before}, wait


# --------------------------------------------------------------------------------------
# Beside COMMAND
# --------------------------------------------------------------------------------------


def wrap(command: "list[str]", runtime: str) -> int:
    """Run COMMAND and the runtime until both have ended; give the container's status."""
    mask, wait = take_signals()
    server = spawn(runtime_argv(runtime), mask, group=True)
    try:
        app = spawn(command, mask)
    except OSError as error:
        tell(server, signal.SIGKILL)  # it has served nobody yet
        return spawn_failure(command, error)
    ended: "dict[int, int]" = {}
    due: "tuple[float, int, int] | None" = None  # (when, pid, signal)
    terminating = told = False  # told: the runtime; a second SIGTERM would cut its message off
    answerable = app

    while len(ended) < 2:
        number = wait(due[0] - time.monotonic() if due else None)
        if due and due[0] <= time.monotonic():
            if due[1] not in ended:
                tell(*due[1:])
                told = told or due[1] == server
            due = None
        if number == signal.SIGCHLD:
            now_ended = reap((app, server))
            ended.update(now_ended)
            if app in now_ended and server not in ended:
                due = None
                if not told:
                    tell(server, signal.SIGTERM)
                if not terminating:  # otherwise the kubelet's clock is running
                    due = (time.monotonic() + SECONDS_FOR_RUNTIME, server, signal.SIGKILL)
            elif server in now_ended and app not in ended and not terminating:
                log("the runtime ended with status %d: so does the container" % ended[server])
                answerable = server
                tell(app, signal.SIGTERM)
                due = (time.monotonic() + SECONDS_FOR_APP, app, signal.SIGKILL)
        elif number == signal.SIGTERM and not terminating:
            terminating = True
            if app in ended:  # the runtime has been told
                due = None
                continue
            tell(app, number)
            if server not in ended:  # the program may take all the time; the message cannot wait
                due = (time.monotonic() + SECONDS_FOR_APP, server, signal.SIGTERM)
        elif number:
            tell(server if app in ended else app, number)
    return ended[answerable]


# --------------------------------------------------------------------------------------
# From hooks, where the container's program is not ours to start
# --------------------------------------------------------------------------------------


def detach(runtime: str) -> int:
    """Leave a supervisor running; wait until it serves, refuses, or 3 seconds are over."""
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        status = 70
        try:
            os.setsid()
            if os.fork() == 0:
                os.close(reader)
                adopt_streams()
                status = supervise(runtime, writer)
            else:
                status = 0
        finally:
            os._exit(status)
    os.waitpid(middle, 0)  # PID 1 is somebody's program and may reap nobody
    os.close(writer)

    import select
    import socket

    path = os.environ.get("ASYA_SOCKET_PATH") or "/tmp/sockets/app.sock"  # noqa: S108
    deadline = time.monotonic() + SECONDS_FOR_HOOK
    while time.monotonic() < deadline:
        if select.select([reader], [], [], 0.05)[0]:
            if not os.read(reader, 1):
                break  # the supervisor has ended without a word
            return refused(runtime)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            if probe.connect_ex(path) == 0:
                break
    return 0


def refused(runtime: str) -> int:
    """Repeat the runtime's line, on the stream that the kubelet puts into the event."""
    try:
        with open("/dev/termination-log", encoding="utf-8", errors="replace") as stream:
            line = stream.read()
    except OSError:
        line = ""
    if line:
        os.write(2, line.encode("utf-8", "replace"))
    else:
        child = spawn(runtime_argv(runtime) + ["--check"], set())
        if os.waitpid(child, 0)[1] == 0:
            log("the runtime did not start; its line is in the container's log")
    return EXIT_REFUSED


def adopt_streams() -> None:
    """Take the container's own streams: the hook's end with it, and kubelet waits for them."""
    for source, target in (("/dev/null", 0), ("/proc/1/fd/1", 1), ("/proc/1/fd/2", 2)):
        try:
            fd = os.open(source, os.O_RDWR if target == 0 else os.O_WRONLY | os.O_APPEND)
        except OSError:  # another user's, or a socket
            fd = os.open("/dev/null", os.O_WRONLY)
        os.dup2(fd, target)
        os.close(fd)


def supervise(runtime: str, report: int) -> int:
    """Run the runtime, again and again, until SIGTERM."""
    mask, wait = take_signals()
    pause, stopping = 1.0, False
    while True:
        began = time.monotonic()
        server = spawn(runtime_argv(runtime), mask)
        ended: "dict[int, int]" = {}
        while server not in ended:
            number = wait(None)
            if number == signal.SIGCHLD:
                ended = reap((server,))
            elif number:
                stopping = stopping or number == signal.SIGTERM
                tell(server, number)
        if stopping:
            return ended[server]
        if ended[server] == EXIT_REFUSED:
            try:
                os.write(report, b"!")
                return EXIT_REFUSED
            except BrokenPipeError:
                pass  # the hook is over, and with it the chance to fail it
        pause = 1.0 if time.monotonic() - began > 60 else min(60.0, pause * 2)
        log("the runtime ended with status %d: again in %d s" % (ended[server], pause))
        until = time.monotonic() + pause
        while time.monotonic() < until:
            if wait(until - time.monotonic()) == signal.SIGTERM:
                return 0


def stop() -> None:
    """End the detached supervisor and wait for it; the kubelet's grace period is the limit."""
    for pid in supervisors():
        tell(pid, signal.SIGTERM)
        while pid in supervisors():
            time.sleep(0.02)


def supervisors() -> "list[int]":
    """Find what `--detach` left behind. Not by a pid file: pids repeat in a restarted container."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            with open("/proc/%s/cmdline" % entry, "rb") as stream:  # empty when it is a zombie
                words = stream.read().split(b"\0")
        except OSError:
            continue  # it has just ended
        if os.fsencode(__file__) in words and b"--detach" in words:
            found.append(int(entry))
    return found


# --------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------


def main(arguments: "list[str]") -> int:
    """Do what the docstring of this file says; give the exit status."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    ours, command = arguments[:split], arguments[split + 1 :]
    mode = ours.pop(0) if ours[:1] in (["--detach"], ["--stop"]) else ""
    runtime = os.path.join(os.path.dirname(os.path.abspath(__file__)), "asya_runtime.py")
    if len(ours) == 2 and ours[0] == "--runtime" and mode != "--stop":
        runtime, ours = ours[1], []
    if ours or not (mode or command):
        sys.stderr.write(__doc__)
        return EXIT_USAGE
    if not mode:
        return wrap(command, runtime)
    if mode == "--detach":
        status = detach(runtime)
        if status or not command:
            return status
        try:
            os.execvp(command[0], command)  # noqa: S606
        except OSError as error:
            return spawn_failure(command, error)
    status = 0
    if command:
        try:
            pid = spawn(command, set())
            status = status_of(os.waitpid(pid, 0)[1])
        except OSError as error:
            status = spawn_failure(command, error)
    stop()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
