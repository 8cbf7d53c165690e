"""Files of user code that are named like modules of the standard library.

The working directory, the directory of the script and PYTHONPATH come before the standard
library in `sys.path`: what the runtime needs it has before those count, and what belongs to the
user is the user's.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import DEADLINE, ENTRYPOINT, RUNTIME, Start, environment, eventually
from .served import Like, ok, replies_to, stopped, write_files

# Modules that `import NAME` finds first in the working directory: neither built in, nor frozen,
# nor loaded when a program starts. On 3.9 nobody lists them, so the directories are read.
LIST = """
import os, sys, sysconfig
names = set(getattr(sys, "stdlib_module_names", ()))
for path in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
    for folder in (path, os.path.join(path, "lib-dynload")):
        for entry in os.listdir(folder) if os.path.isdir(folder) else ():
            if entry.endswith((".py", ".so")) or os.path.isfile(f"{folder}/{entry}/__init__.py"):
                names.add(entry.split(".")[0])
names -= set(sys.builtin_module_names) | set(sys.modules)
names = {name for name in names if name.isidentifier() and not name.startswith("_frozen")}
print("\\n".join(names))
"""
HANDLER = """def predict(m):
    return [m["payload"], 1 / m["payload"].get("divisor", 1)][0]
"""
CALLS = [{"a": 1}, {"a": [1.5, None, "ä"]}, b"[", {"b": 2}, {"divisor": 0}]


@functools.cache
def names(python: str) -> list[str]:
    """Give the modules that a file in the working directory would hide from a program."""
    environ = environment(Path("/"))
    ran = subprocess.run(
        [python, "-c", LIST], env=environ, capture_output=True, text=True, check=True
    )
    found = ran.stdout.split()
    assert {"json", "struct", "queue", "resource", "traceback"} <= set(found)
    return sorted(found)


def hide(folder: Path, python: str, text: str = "") -> None:
    """Put a file there for each of the names."""
    write_files(folder, {f"{name}.py": text for name in names(python)})


def serves(start: Start, python: str, script: Path = RUNTIME, **environ: str) -> None:
    process = start(
        "0", "pkg.h.predict", python=python, argv=[python, str(script)], ready=False, **environ
    )

    def done() -> bool:
        return process.socket.exists() or process.popen.poll() is not None

    eventually(done, "socket or end")
    assert process.popen.poll() is None, process.log()
    got = replies_to(process, CALLS)
    assert [got[0], got[1], got[3]] == [ok(CALLS[0]), ok(CALLS[1]), ok(CALLS[3])], process.log()
    assert Like(error="invalid_json") == got[2], process.log()
    place = f'  File "{process.folder}/pkg/h.py", line 2, in predict\n'
    assert re.search(re.escape(place) + "(    .*\n)*  ZeroDivisionError: ", process.log())
    for command in ("--ready", "--check", "--call"):
        ran = subprocess.run(
            [python, str(script), command],
            cwd=process.folder,
            env=environment(process.folder, ASYA_HANDLER="pkg.h.predict", **environ),
            input=b'{"payload": {"a": 1}}',
            capture_output=True,
            timeout=DEADLINE,
            check=False,
        )
        assert (command, ran.returncode) == (command, 0), ran.stderr.decode()
        if command == "--call":
            assert json.loads(ran.stdout) == ok({"a": 1})
    stopped(process)


PACKAGE = {"pkg/__init__.py": "", "pkg/h.py": HANDLER}


@pytest.mark.parametrize(
    ("handler", "concurrency"),
    [(HANDLER, "1"), (HANDLER, "3"), ("async " + HANDLER, "1")],
    ids=["plain", "threads", "async"],
)
def test_empty_files_in_the_working_directory_are_not_the_runtimes_modules(
    start: Start, folder: Path, python: str, handler: str, concurrency: str
) -> None:
    write_files(folder, {**PACKAGE, "pkg/h.py": handler})
    hide(folder, python)
    # Since 3.15: an import waits until its name is used
    serves(start, python, ASYA_CONCURRENCY=concurrency, PYTHON_LAZY_IMPORTS="all")


def test_broken_files_in_the_directory_of_the_script_are_not_the_runtimes_modules(
    start: Start, folder: Path, python: str
) -> None:
    write_files(folder, PACKAGE)
    hide(folder / "bin", python, "raise SystemExit(9)")
    shutil.copy(RUNTIME, folder / "bin" / "asya_runtime.py")
    serves(start, python, folder / "bin" / "asya_runtime.py")


def test_broken_files_in_pythonpath_are_not_the_runtimes_modules(
    start: Start, folder: Path, python: str
) -> None:
    write_files(folder, PACKAGE)
    hide(folder / "lib", python, "raise SystemExit(9)")
    serves(start, python, PYTHONPATH=str(folder / "lib"))


def test_stacks_are_printed_without_source_where_such_files_keep_the_library_from_it(
    runtime: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.traceback, "format_stack", lambda *_: sys.exit(9))
    frame = sys._getframe()
    place = rf'  File "{re.escape(__file__)}", line \d+, in {frame.f_code.co_name}\n'
    lines, (line,) = runtime.format_stack(frame), runtime.format_stack(frame, 1)
    assert re.fullmatch(place, line)
    assert re.fullmatch(place, lines[-1])
    assert len(lines) > 1


def test_a_wrapper_started_among_such_files_serves(start: Start, folder: Path, python: str) -> None:
    write_files(folder, PACKAGE)
    hide(folder, python)
    argv = [python, "-I", "-S", str(ENTRYPOINT), "--", "sleep", "600"]
    process = start("0", "pkg.h.predict", argv=argv)
    assert replies_to(process, CALLS[:1]) == [ok(CALLS[0])]
    stopped(process, 143)


@pytest.mark.parametrize("concurrency", ["1", "2"])
@pytest.mark.parametrize("name", ["queue", "resource", "struct", "json", "traceback", "select"])
def test_a_handler_in_a_module_named_like_one_of_the_library_is_served(
    start: Start, folder: Path, name: str, concurrency: str
) -> None:
    write_files(folder, {f"{name}.py": HANDLER})
    process = start("0", f"{name}.predict", ASYA_CONCURRENCY=concurrency)
    assert replies_to(process, CALLS[:2]) == [ok(CALLS[0]), ok(CALLS[1])]
    stopped(process)


@pytest.mark.parametrize("name", ["queue", "resource"])
def test_a_handler_in_a_module_named_like_one_of_the_library_is_served_everywhere(
    start: Start, folder: Path, python: str, name: str
) -> None:
    write_files(folder, {f"{name}.py": HANDLER})
    process = start("0", f"{name}.predict", python=python)
    assert replies_to(process, CALLS[:2]) == [ok(CALLS[0]), ok(CALLS[1])]
    stopped(process)


# What a handler's module imports is its neighbour, as it would be in a script of its own. The
# modules that the runtime has loaded before it, json among them, have never been: not asked here
NEIGHBOURS = ["queue", "resource", "struct", "random", "code", "calendar", "platform", "uuid"]


def test_a_neighbour_of_the_handler_named_like_one_of_the_library_is_the_users(
    start: Start, folder: Path, python: str
) -> None:
    write_files(folder, {f"{name}.py": f"own = {name!r}" for name in NEIGHBOURS})
    source = f"""
        import {", ".join(NEIGHBOURS)}
        def predict(m): return [module.own for module in ({", ".join(NEIGHBOURS)})]
    """
    process = start(source, "app.predict", python=python)
    assert replies_to(process, [{}]) == [ok(NEIGHBOURS)]
    stopped(process)


def test_a_package_named_like_a_module_of_the_library_is_served(
    start: Start, folder: Path, python: str
) -> None:
    write_files(folder, {"queue/__init__.py": "", "queue/model.py": HANDLER})
    process = start("0", "queue.model.predict", python=python, ASYA_CONCURRENCY="2")
    assert replies_to(process, CALLS[:1]) == [ok(CALLS[0])]
    stopped(process)


def test_a_module_named_as_the_runtime_is_the_users(
    start: Start, folder: Path, python: str
) -> None:
    write_files(folder, {"asya_runtime.py": HANDLER})
    process = start("0", "asya_runtime.predict", python=python)
    assert replies_to(process, CALLS[:1]) == [ok(CALLS[0])]
    stopped(process)
