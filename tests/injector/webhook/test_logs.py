"""The injector's log: the fields of a line, and which records are logged."""

import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from asya_injector.webhook.telemetry import JsonLines

from tests.injector.conftest import ROOT, run_script


@pytest.fixture
def outside_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose time zone is not UTC."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("outside_utc")
def test_a_line_has_the_time_in_utc_first_and_extra_fields_last() -> None:
    record = logging.makeLogRecord(
        {"name": "a.b", "levelname": "INFO", "msg": "%s", "args": ("x",)}
    )
    record.created, record.msecs = 1767225599.0, 7.0
    record.uid, record.seconds, record.path = "u\n1", 0.5, ROOT
    assert list(json.loads(JsonLines().format(record)).items()) == [
        ("time", "2025-12-31T23:59:59.007Z"),
        ("level", "INFO"),
        ("logger", "a.b"),
        ("message", "x"),
        ("uid", "u\n1"),
        ("seconds", 0.5),
        ("path", str(ROOT)),
    ]


@pytest.mark.parametrize(
    ("level", "logged"),
    [
        ("DEBUG", ["DEBUG asya_injector", "INFO asya_injector", "WARNING kopf", "WARNING asyncio"]),
        ("INFO", ["INFO asya_injector", "WARNING kopf", "WARNING asyncio"]),
        ("ERROR", []),
    ],
)
def test_logs_only_warnings_of_libraries_and_nothing_that_repeats_a_review(
    level: str, logged: list[str]
) -> None:
    script = (
        "import logging; from asya_injector.webhook.telemetry import log_as_json\n"
        f"log_as_json({level!r})\n"
        "for name in ('asya_injector', 'kopf', 'asyncio', 'urllib3'):\n"
        "    logging.getLogger(name).debug('x'); logging.getLogger(name).info('x')\n"
        "for name in ('kopf.objects', 'aiohttp.server'): logging.getLogger(name).error('x')\n"
        "for name in ('kopf', 'asyncio'): logging.getLogger(name).warning('x')\n"
    )
    process = run_script(script)
    lines = [json.loads(line) for line in process.stderr.splitlines()]
    assert [f"{line['level']} {line['logger']}" for line in lines] == logged


def format_record(message: str = "m", **fields: Any) -> dict[str, Any]:
    record = logging.makeLogRecord({"name": "a", "levelname": "INFO", "msg": message} | fields)
    line = JsonLines().format(record)
    assert len(line) < 60_000
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.mark.parametrize("text", ["x", "\n", "\U0001f600"], ids=ascii)
@pytest.mark.parametrize("field", ["message", "uid", "rejection", "error"])
def test_shortens_long_texts(field: str, text: str) -> None:
    assert format_record(**{field: text * 1000})[field] == text * 1000
    assert format_record(**{field: text * 1_000_000})[field] == text * 997 + "..."


def test_keeps_the_end_of_a_long_traceback() -> None:
    try:
        raise ValueError("x" * 1_000_000 + " is wrong")
    except ValueError:
        line = format_record(exc_info=sys.exc_info())
    assert len(line["exception"]) == 8000
    assert line["exception"].endswith("x is wrong")
