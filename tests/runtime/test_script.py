"""The file run as a script: it leaves neither the memory of its parsing nor a trace of how."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import RUNTIME, Start
from .processes import PID_1, children_of, heap_of, needs_namespace, pid_1_of
from .served import write_files

MIB = 1 << 20
SOURCE = """
    import sys
    def hooks(message):
        return [sys.excepthook.__name__, [name for name in dir(sys) if name.startswith("last_")]]
"""
HOOK = """
    import sys
    def hook_of_user(*error): pass
    sys.excepthook = hook_of_user
"""
RUN_PATH = f"import runpy; runpy.run_path({str(RUNTIME)!r}, run_name='__main__')"
# How the process is started, and what its sitecustomize does
STARTS: dict[str, tuple[list[str], str]] = {
    "a script": ([str(RUNTIME)], ""),
    "a script in development mode": (["-X", "dev", str(RUNTIME)], ""),
    "code that runs the script": (["-c", RUN_PATH], ""),
    "no _ctypes": ([str(RUNTIME)], "sys.modules['_ctypes'] = None"),
    "another C library": ([str(RUNTIME)], "import _ctypes; _ctypes.dlsym = None"),
    "an audit hook that refuses C": (
        [str(RUNTIME)],
        """
    def refuse(event, arguments):
        if event.startswith("ctypes."): raise RuntimeError(event)
    sys.addaudithook(refuse)
        """,
    ),
}


@pytest.mark.parametrize(("argv", "site"), STARTS.values(), ids=STARTS)
def test_user_code_finds_the_hook_for_exceptions_as_it_was(
    start: Start, folder: Path, python: str, argv: list[str], site: str
) -> None:
    write_files(folder, {"site/sitecustomize.py": f"{HOOK}    {site}"})
    process = start(SOURCE, "app.hooks", argv=[python, *argv], PYTHONPATH="site")
    assert process.client().call({"payload": {}}) == {
        "status": "ok",
        "result": ["hook_of_user", []],
    }
    process.signal()
    assert process.wait() == 0


@needs_namespace
@pytest.mark.parametrize("prefix", [[], PID_1], ids=["alone", "under its own init"])
def test_the_memory_of_its_parsing_is_given_back(
    start: Start, python: str, prefix: list[str]
) -> None:
    process = start(SOURCE, "app.hooks", argv=[*prefix, python, str(RUNTIME)])
    process.client().call({"payload": {}})
    pids = [process.pid]
    if prefix:
        pids = [pid_1_of(process), *children_of(pid_1_of(process))]
        assert len(pids) == 2
    assert [pid for pid in pids if heap_of(pid) > 4 * MIB] == []  # the tree alone has 9
