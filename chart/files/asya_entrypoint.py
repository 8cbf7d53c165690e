#!/usr/bin/env python3
"""Run asya_runtime.py beside the program of a container.

    asya_entrypoint.py [--runtime FILE] -- COMMAND ARGS...
        Run COMMAND with the runtime beside it. Signals go to COMMAND, and its exit status
        becomes the container's. If the runtime ends first, COMMAND is stopped and the
        runtime's status becomes the container's.
    asya_entrypoint.py --detach [--runtime FILE] [-- HOOK COMMAND...]
        For a postStart hook: start the runtime in the background and restart it when it ends.
        Returns when it serves or after 3 seconds; then runs the image's own hook, if any.
    asya_entrypoint.py --stop [-- HOOK COMMAND...]
        For a preStop hook: run the image's own hook, if any; then stop the background runtime
        and wait until its message is answered.
    asya_entrypoint.py --ready [--runtime FILE]
        For a readiness probe: what `asya_runtime.py --ready` does, without its long start.

Run it as `python3 -I -S`: PYTHONPATH and site-packages of the image are for the runtime, not
for this program. It never starts a shell. All signals are blocked and taken one at a time
with `sigtimedwait`, so there are no signal handlers and no races; child processes get the
original signal mask.
"""

import sys

if sys.version_info < (3, 9):  # a readable line, not a traceback: this file parses on 3.6
    sys.stderr.write(
        "asya_entrypoint: requires Python 3.9 or newer; this is %s (%s)\n"
        % (sys.version.split()[0], sys.executable)
    )
    sys.exit(78)

IS_PROBE = __name__ == "__main__" and sys.argv[1:2] == ["--ready"]  # which has to be cheap
if not IS_PROBE:
    import errno
    import os
    import signal
    import time

    IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # reset in child processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

EXIT_USAGE = 64
EXIT_CONFIG = 78  # of the runtime: a setting or the handler is wrong
SECONDS_FOR_APP = 10  # from its SIGTERM until the runtime gets one too
SECONDS_FOR_RUNTIME = 30  # to answer its message, where the kubelet sets no limit
SECONDS_FOR_HOOK = 3


LOG_LIMIT = 4000  # characters
# What a terminal or a reader of logs would act on: controls, and marks that reverse text
CONTROLS = {
    number: "\\u%04x" % number
    for marks in ((0, 32), (127, 160), (0x2028, 0x202F), (0x2066, 0x206A))
    for number in range(*marks)
}


def log(text: str) -> None:
    """Write one line to fd 2."""
    write_line("asya_entrypoint: " + text)


def write_line(text: str) -> None:
    """Write text of others to fd 2 as one line, cut and escaped."""
    line = text[:LOG_LIMIT].translate(CONTROLS) + "\n"
    try:
        os.write(2, line.encode("utf-8", "backslashreplace"))
    except OSError:
        pass  # nobody reads it


def spawn(argv: "Sequence[str]", mask: "set[int]", group: bool = False) -> int:
    """Start a program, found in PATH as by a shell; return its pid. Raises OSError.

    `group`: in a new process group, which the keys of the terminal do not reach.
    """
    return os.posix_spawnp(
        argv[0],
        list(argv),
        os.environ,
        setsigmask=mask,
        setsigdef=IGNORED_BY_PYTHON,
        **({"setpgroup": 0} if group else {}),  # type: ignore[arg-type]
    )


def report_spawn_failure(argv: "Sequence[str]", error: OSError) -> int:
    """Log why a program did not start; return the status that a shell would return."""
    log("%s: %s" % (argv[0], error.strerror))
    return 127 if error.errno == errno.ENOENT else 126


def make_runtime_argv(runtime: str) -> "list[str]":
    """Return the command of the runtime. Not isolated: the handler needs venv and PYTHONPATH."""
    return [sys.executable or "python3", runtime]


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a child that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # reaped soon


def get_status(code: int) -> int:
    """Return the exit status as a shell does: 128 + n for signal n."""
    number = os.waitstatus_to_exitcode(code)
    return number if number >= 0 else 128 - number


def reap(known: "Sequence[int]") -> "dict[int, int]":
    """Reap every child that has ended, adopted orphans too; return the status of the known ones."""
    ended: "dict[int, int]" = {}
    while True:
        try:
            pid, code = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        if pid in known:
            ended[pid] = get_status(code)


def take_signals() -> "tuple[set[int], Callable[[float | None], int]]":
    """Block all signals; return the previous mask and `wait(seconds)`.

    `wait` returns the number of a signal, or 0 after a timeout. Signals of the terminal (Ctrl-C)
    count as 0: COMMAND is in the same process group and has received them.
    """
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # if inherited as ignored, it would hide the status
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


# --- Beside COMMAND


def wrap(command: "list[str]", runtime: str) -> int:
    """Run COMMAND and the runtime until both have ended; return the container's exit status."""
    mask, wait = take_signals()
    try:
        server = spawn(make_runtime_argv(runtime), mask, group=True)
    except OSError as error:
        return report_spawn_failure([runtime], error)
    try:
        app = spawn(command, mask)
    except OSError as error:
        send_signal(server, signal.SIGKILL)  # it has not served yet
        return report_spawn_failure(command, error)
    ended: "dict[int, int]" = {}
    due: "tuple[float, int, int] | None" = None  # (when, pid, signal)
    terminating = False  # the container got SIGTERM
    server_signaled = False  # a second SIGTERM would cut its message off
    decisive = app  # the process whose status becomes the container's

    while len(ended) < 2:
        number = wait(due[0] - time.monotonic() if due else None)
        if due and due[0] <= time.monotonic():
            if due[1] not in ended:
                send_signal(*due[1:])
                server_signaled = server_signaled or due[1] == server
            due = None
        if number == signal.SIGCHLD:
            now_ended = reap((app, server))
            ended.update(now_ended)
            if app in now_ended and server not in ended:
                due = None
                if not server_signaled:
                    send_signal(server, signal.SIGTERM)
                if not terminating:  # otherwise the kubelet sets the limit
                    due = (time.monotonic() + SECONDS_FOR_RUNTIME, server, signal.SIGKILL)
            elif server in now_ended and app not in ended and not terminating:
                log("the runtime exited with status %d; stopping the container" % ended[server])
                decisive = server
                send_signal(app, signal.SIGTERM)
                due = (time.monotonic() + SECONDS_FOR_APP, app, signal.SIGKILL)
        elif number == signal.SIGTERM and not terminating:
            terminating = True
            if app in ended:  # the runtime has its SIGTERM
                due = None
                continue
            send_signal(app, number)
            if server not in ended:  # the program may use all the time; the message cannot wait
                due = (time.monotonic() + SECONDS_FOR_APP, server, signal.SIGTERM)
        elif number:
            send_signal(server if app in ended else app, number)
    return ended[decisive]


# --- From hooks: the program of the container is the image's own


def detach(runtime: str) -> int:
    """Start a supervisor in the background; wait up to 3 s until the runtime serves or fails."""
    reader, writer = os.pipe()
    try:
        middle = os.fork()
    except OSError as error:
        return report_spawn_failure(["--detach"], error)
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
    os.waitpid(middle, 0)  # PID 1 is the image's program and may reap nobody
    os.close(writer)

    import select

    path = get_socket_path()
    deadline = time.monotonic() + SECONDS_FOR_HOOK
    while time.monotonic() < deadline:
        if select.select([reader], [], [], 0.05)[0]:
            if not os.read(reader, 1):
                break  # the supervisor has ended without a report
            return repeat_startup_error(runtime)
        try:
            try_to_connect(path)
            break
        except OSError:
            pass  # not yet
    return 0


def repeat_startup_error(runtime: str) -> int:
    """Print the runtime's error line where the kubelet reads it for the event."""
    try:
        with open("/dev/termination-log", encoding="utf-8", errors="replace") as stream:
            line = stream.read()
    except OSError:
        line = ""
    if line:
        write_line(line.rstrip("\n"))
    else:
        child = spawn(make_runtime_argv(runtime) + ["--check"], set())
        if os.waitpid(child, 0)[1] == 0:
            log("the runtime did not start; see the log of the container")
    return EXIT_CONFIG


def adopt_streams() -> None:
    """Use the streams of the container: those of the hook end with it, and the kubelet waits."""
    for source, target in (("/dev/null", 0), ("/proc/1/fd/1", 1), ("/proc/1/fd/2", 2)):
        try:
            fd = os.open(source, os.O_RDWR if target == 0 else os.O_WRONLY | os.O_APPEND)
        except OSError:  # another user's, or a socket: not allowed
            fd = os.open("/dev/null", os.O_WRONLY)
        os.dup2(fd, target)
        os.close(fd)


def supervise(runtime: str, report: int) -> int:
    """Run the runtime and restart it until SIGTERM."""
    mask, wait = take_signals()
    pause, stopping = 1.0, False
    while True:
        began = time.monotonic()
        ended: "dict[int, int]" = {}
        try:
            server = spawn(make_runtime_argv(runtime), mask)
        except OSError as error:  # no process can be started now
            reason = "cannot start the runtime: %s" % error.strerror
        else:
            while server not in ended:
                number = wait(None)
                if number == signal.SIGCHLD:
                    ended = reap((server,))
                elif number:
                    stopping = stopping or number == signal.SIGTERM
                    send_signal(server, number)
            if stopping:
                return ended[server]
            reason = "the runtime exited with status %d" % ended[server]
        if EXIT_CONFIG in ended.values():
            try:
                os.write(report, b"!")
                return EXIT_CONFIG
            except BrokenPipeError:
                pass  # the hook has ended and cannot fail any more
        pause = 1.0 if time.monotonic() - began > 60 else min(60.0, pause * 2)
        log("%s; restarting in %d s" % (reason, pause))
        until = time.monotonic() + pause
        while time.monotonic() < until:
            number = wait(until - time.monotonic())
            if number == signal.SIGTERM:
                return 0
            if number == signal.SIGCHLD:
                reap(())


def stop() -> None:
    """Stop the background supervisor and wait for it; the grace period is the limit."""
    for pid in find_supervisors():
        send_signal(pid, signal.SIGTERM)
        while pid in find_supervisors():
            time.sleep(0.02)


def find_supervisors() -> "list[int]":
    """Find what `--detach` started. Not by a pid file: a restarted container repeats pids."""
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


# --- Readiness: without `os` and `socket`, whose import costs as much as the interpreter's start


def check_ready(runtime: str) -> "NoReturn":
    """Exit 0 if a process listens, and 1 if none does yet; else become the runtime's `--ready`.

    The runtime explains what is wrong. To start it takes many times as long, and most probes that
    fail do so while models are loaded, when a node is busy.
    """
    import posix

    path = get_socket_path()
    try:
        if path[0] == "/" != path[-1]:  # otherwise the path is invalid
            try_to_connect(path)
            posix._exit(0)  # the interpreter's own end takes a fifth of its time
    except (FileNotFoundError, ConnectionRefusedError) as error:
        if not has_startup_error():
            line = "asya_runtime: not ready: %s: %s\n" % (path.translate(CONTROLS), error.strerror)
            posix.write(1, line.encode("utf-8", "backslashreplace"))
            posix._exit(1)
    except OSError:
        pass
    import os

    argv = [sys.executable or "python3", "-I", "-S", runtime, "--ready"]
    os.execvp(argv[0], argv)  # noqa: S606


def get_socket_path() -> str:
    """Return the path as the runtime reads it."""
    import posix

    text = posix.environ.get(b"ASYA_SOCKET_PATH", b"")
    path = str(text, sys.getfilesystemencoding(), "surrogateescape").strip()
    return path or "/tmp/sockets/app.sock"  # noqa: S108


def try_to_connect(path: str) -> None:
    """Raise OSError unless a process listens there."""
    import _socket

    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        sock.connect(path)
    except BlockingIOError:
        pass  # the backlog is full: a process listens
    finally:
        sock.close()


def has_startup_error() -> bool:
    """Whether the runtime, or another program, has left a line for Kubernetes."""
    import posix

    try:
        return posix.stat("/dev/termination-log").st_size > 0
    except OSError:
        return False


# --- Command line


def main(arguments: "list[str]") -> int:
    """Run the command of the command line, as above; return the exit status."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    ours, command = arguments[:split], arguments[split + 1 :]
    mode = ours.pop(0) if ours[:1] in (["--detach"], ["--stop"], ["--ready"]) else ""
    runtime = __file__.rpartition("/")[0] + "/asya_runtime.py"
    if len(ours) == 2 and ours[0] == "--runtime" and mode != "--stop":
        runtime, ours = ours[1], []
    if ours or not (mode or command) or (command and mode == "--ready"):
        sys.stderr.write(__doc__)
        return EXIT_USAGE
    if mode == "--ready":
        check_ready(runtime)
    if not mode:
        return wrap(command, runtime)
    if mode == "--detach":
        status = detach(runtime)
        if status or not command:
            return status
        try:
            os.execvp(command[0], command)  # noqa: S606
        except OSError as error:
            return report_spawn_failure(command, error)
    status = 0
    if command:
        try:
            pid = spawn(command, set())
            status = get_status(os.waitpid(pid, 0)[1])
        except OSError as error:
            status = report_spawn_failure(command, error)
    stop()
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
