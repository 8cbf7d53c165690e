"""Runs what a page says in one shell, as somebody would who types it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.docs.pages import Command, agrees, blocks, commands


class PageError(AssertionError):
    """A command did something else than the page says."""


def run_page(page: Path, folder: Path, environ: Mapping[str, str], *, seconds: float) -> int:
    """Write the page's files into `folder`, run its commands there; returns how many there were.

    Whatever they leave running is ended. Raises PageError for the first that does something else
    than the page says, or when all of them together take longer than `seconds`.
    """
    found = blocks(page.read_text())
    for block in found:
        if block.name:
            path = folder / block.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
    session = [
        each for block in found if block.language == "console" for each in commands(block.text)
    ]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        shell = subprocess.Popen(
            ["bash", "-c", _script(session)],
            cwd=folder,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        late = False
        try:
            shell.wait(seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGTERM)
            shell.wait(100)
        log.seek(0)
        output = log.read()
    if late:
        raise PageError(f"{page.name}: not done in {seconds:g} s:\n{output[-2000:]}")
    _compare(page, session, output)
    return len(session)


# Says, after each command, its number and status on a line of its own.
_MARK = "\n@@{}:{}@@\n"


def _script(session: list[Command]) -> str:
    lines = []
    for number, command in enumerate(session):
        ends = "[ $status -ne 0 ]" if command.fails else "[ $status -eq 0 ]"
        mark = _MARK.format(number, "%d").replace("\n", "\\n")
        lines += [command.text, "status=$?", f"printf '{mark}' $status", f"{ends} || exit 0"]
    return "\n".join(lines)


def _compare(page: Path, session: list[Command], output: str) -> None:
    rest = output
    for number, command in enumerate(session):
        printed, mark, after = rest.partition(f"\n@@{number}:")
        status, _, rest = after.partition("@@\n")
        where = f"{page.name}: $ {command.text}\n"
        if not mark:
            raise PageError(f"{where}did not end:\n{rest}")
        if (int(status) != 0) != command.fails:
            raise PageError(f"{where}ended with {status}:\n{printed}")
        if not agrees(printed, command.prints):
            raise PageError(f"{where}printed:\n{printed}\nthe page says:\n{command.prints}")
