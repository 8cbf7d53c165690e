"""Run a Python program in a pod and be sure of what it said.

When one side of an exec's connection closes, the kubelet drops what is still on its way to the
other, and kubectl takes the silence for success (kubernetes/kubernetes pull request 137404). On a
busy node one exec of a thousand loses output and exit code so. The program's process therefore does
not end before its output has been read here.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading

MARK = "\x04"  # ASCII's End of Transmission; the exit code follows it

ENTRY = f"""
import io, sys, traceback
program, size = sys.argv[1], int(sys.argv[2])
del sys.argv[1:3]
here = sys.stdin.buffer
sys.stdin = io.TextIOWrapper(io.BytesIO(here.read(size)))
failed = 0
try:
    exec(program)
except SystemExit as end:
    if end.code not in (None, 0):
        failed = 1
        print(end, file=sys.stderr)
except BaseException:
    failed = 1
    traceback.print_exc()
print({MARK!r} + str(failed), flush=True)
here.read()
"""


def run_inside(
    *pod: str, program: str, arguments: tuple[str, ...] = (), stdin: str = "", timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run a program's text in a pod.

    pod: kubectl's words that say which, and which container. stdin: all that the program can read.
    Returns what it said and its exit code, 0 or 1; where it did not come to its end, kubectl's own
    code, or 1. After `timeout` seconds kubectl is killed.
    """
    inside = ["python3", "-c", ENTRY, program, str(len(stdin.encode())), *arguments]
    words = ["kubectl", "exec", "-i", *pod, "--", *inside]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as kubectl:
        assert kubectl.stdin
        assert kubectl.stdout
        assert kubectl.stderr
        deadline = threading.Timer(timeout, kubectl.kill)
        deadline.start()
        with contextlib.suppress(BrokenPipeError):  # it has ended, and says why
            kubectl.stdin.write(stdin)
            kubectl.stdin.flush()
        said, mark, code = "", "", ""
        for line in kubectl.stdout:
            before, mark, code = line.partition(MARK)
            said += before
            if mark:
                break
        with contextlib.suppress(BrokenPipeError):
            kubectl.stdin.close()
        errors = kubectl.stderr.read()
        ended = kubectl.wait()
        deadline.cancel()
    if mark:
        return subprocess.CompletedProcess(words, int(code), said, errors)
    lost = f"{errors}the program did not come to its end"
    return subprocess.CompletedProcess(words, ended or 1, said, lost)
