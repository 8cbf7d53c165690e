"""The injector's log: the fields of a line, and which records are logged."""

import json
import logging
import time
from collections.abc import Iterator

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
def test_logs_only_warnings_of_libraries_and_nothing_of_kopf_about_objects(
    level: str, logged: list[str]
) -> None:
    script = (
        "import logging; from asya_injector.webhook.telemetry import log_as_json\n"
        f"log_as_json({level!r})\n"
        "for name in ('asya_injector', 'kopf', 'asyncio', 'urllib3'):\n"
        "    logging.getLogger(name).debug('x'); logging.getLogger(name).info('x')\n"
        "logging.getLogger('kopf.objects').error('x')\n"
        "for name in ('kopf', 'asyncio'): logging.getLogger(name).warning('x')\n"
    )
    process = run_script(script)
    lines = [json.loads(line) for line in process.stderr.splitlines()]
    assert [f"{line['level']} {line['logger']}" for line in lines] == logged
