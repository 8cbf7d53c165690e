"""Running a program in a pod, with a script in place of kubectl."""

from pathlib import Path

import pytest

from e2e.pod_exec import exec_python

KUBECTL = """#!/bin/bash
while [[ $1 != -- ]]; do shift; done
shift
"""
# Loses the output of a process that has ended, and reports success.
CUT = (
    KUBECTL
    + """
exec 4<&0
"$@" <&4 >"$0.out" &
until grep -q $'\x04' "$0.out" || ! kill -0 $! 2>/dev/null; do sleep 0.05; done
sleep 0.5  # for the end of a process that does not wait
kill -0 $! && cat "$0.out"
exit 0
"""
)


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl that runs the program on this machine."""
    path = tmp_path / "kubectl"
    path.write_text(KUBECTL + 'exec "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return path


@pytest.mark.parametrize(
    ("program", "stdin", "returncode", "stdout", "stderr"),
    [
        pytest.param("print(1)", "", 0, "1\n", "", id="output"),
        pytest.param("print(1, end='')", "", 0, "1", "", id="no-newline"),
        pytest.param("", "", 0, "", "", id="nothing"),
        pytest.param("import sys\nprint(sys.stdin.read())", "é\n", 0, "é\n\n", "", id="input"),
        pytest.param("import sys\nprint(*sys.stdin.buffer)", "a\nb", 0, "b'a\\n' b'b'\n", "",
                     id="lines"),
        pytest.param("import sys\nprint(sys.argv[1:])", "", 0, "['one', 'two']\n", "",
                     id="arguments"),
        pytest.param("import sys\nsys.exit()", "", 0, "", "", id="exit"),
        pytest.param("import sys\nsys.exit(0)", "", 0, "", "", id="exit-0"),
        pytest.param("import sys\nsys.exit(3)", "", 1, "", "3\n", id="exit-3"),
        pytest.param("import sys\nsys.exit('no such process')", "", 1, "", "no such process\n",
                     id="exit-with-text"),
        pytest.param("print(1)\n1 / 0", "", 1, "1\n", "ZeroDivisionError: division by zero\n",
                     id="exception"),
        pytest.param("import os\nos._exit(7)", "", 7, "", "the program did not end as expected",
                     id="no-end"),
    ],
)  # fmt: skip
def test_the_output_and_the_exit_code_of_a_program_are_returned(
    kubectl: Path, program: str, stdin: str, returncode: int, stdout: str, stderr: str
) -> None:
    done = exec_python("pod", program=program, arguments=("one", "two"), stdin=stdin)
    assert (done.returncode, done.stdout) == (returncode, stdout)
    assert done.stderr.endswith(stderr)
    assert bool(done.stderr) == bool(stderr)


def test_the_process_stays_until_its_output_is_read(kubectl: Path) -> None:
    kubectl.write_text(CUT)
    done = exec_python("pod", program="print(1)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_a_program_whose_end_is_not_reported_has_failed(kubectl: Path) -> None:
    kubectl.write_text(CUT)
    done = exec_python("pod", program="import os\nprint(1, flush=True)\nos._exit(0)")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("the program did not end as expected")


def test_a_program_is_killed_after_the_timeout(kubectl: Path) -> None:
    done = exec_python("pod", program="import time\ntime.sleep(60)", timeout=0.5)
    assert (done.returncode, done.stderr) == (-9, "the program did not end as expected")
