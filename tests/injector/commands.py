"""Runs the command line in this process, and returns what a shell would see."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from asya_injector.cli.main import main


@dataclass(frozen=True)
class Done:
    """The exit status and the output of a command."""

    status: int
    out: str
    err: str


def asya(*words: str | Path, stdin: str = "", **environ: str) -> Done:
    """Run `asya-injector` with these arguments."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
    stdin_ = io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8")
    with (
        _streams(stdin_, out, err),
        mock.patch.dict(os.environ, environ),
        pytest.raises(SystemExit) as ended,
    ):
        main([str(word) for word in words])
    texts = []
    for stream in (out, err):
        stream.flush()
        buffer = stream.buffer
        assert isinstance(buffer, io.BytesIO)
        texts.append(buffer.getvalue().decode(errors="surrogateescape"))
    return Done(int(ended.value.code or 0), *texts)


@contextlib.contextmanager
def _streams(*streams: io.TextIOWrapper) -> Iterator[None]:
    with (
        mock.patch.object(sys, "stdin", streams[0]),
        mock.patch.object(sys, "stdout", streams[1]),
        mock.patch.object(sys, "stderr", streams[2]),
    ):
        yield
