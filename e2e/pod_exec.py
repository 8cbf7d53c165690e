"""Run a Python program in a pod, with reliable output and exit code.

When one side of an exec's connection closes, the kubelet drops data for the other side, and kubectl
takes the missing data for success (kubernetes/kubernetes pull request 137404). On a busy node one
exec of a thousand loses its output and exit code. Therefore the program's process waits until its
output is read here.
"""

from __future__ import annotations

import contextlib
import subprocess
import threading

END = "\x04"  # ASCII's End of Transmission; the exit code follows it

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
print({END!r} + str(failed), flush=True)
here.read()
"""


def exec_python(
    *pod: str, program: str, arguments: tuple[str, ...] = (), stdin: str = "", timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """Run the text of a program in a pod, and return its output and exit code, 0 or 1.

    pod: kubectl's arguments for the pod and the container. stdin: all of the program's input.
    If the program does not end as expected, the exit code is kubectl's, or 1. kubectl is killed
    after `timeout` seconds.
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
        with contextlib.suppress(BrokenPipeError):  # it has ended; its error is read below
            kubectl.stdin.write(stdin)
            kubectl.stdin.flush()
        output, mark, code = "", "", ""
        for line in kubectl.stdout:
            before, mark, code = line.partition(END)
            output += before
            if mark:
                break
        with contextlib.suppress(BrokenPipeError):
            kubectl.stdin.close()
        errors = kubectl.stderr.read()
        ended = kubectl.wait()
        deadline.cancel()
    if mark:
        return subprocess.CompletedProcess(words, int(code), output, errors)
    errors += "the program did not end as expected"
    return subprocess.CompletedProcess(words, ended or 1, output, errors)
