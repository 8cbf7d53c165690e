"""Settings: one table in the code, the same in the documentation, each mistake one line."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import RUNTIME, Start

README = RUNTIME.with_name("README.md")
GOOD = {"ASYA_HANDLER": "app.echo"}
WRONG = [
    ("ASYA_HANDLER", "echo", "must be module.path.function or module.Class.method"),
    ("ASYA_HANDLER", "app.", "must be module.path.function or module.Class.method"),
    ("ASYA_HANDLER", "my-app.echo", "must be module.path.function or module.Class.method"),
    ("ASYA_SOCKET_PATH", "app.sock", "must be the absolute path of a file"),
    ("ASYA_SOCKET_PATH", "/tmp/", "must be the absolute path of a file"),
    ("ASYA_SOCKET_PATH", "/" + "x" * 107, "must be at most 107 bytes long"),
    ("ASYA_INCLUDE_METADATA", "maybe", "must be true, 1, yes, false, 0 or no"),
    ("ASYA_CHUNK_SIZE", "0", "must be a whole number from 1 to 16777216"),
    ("ASYA_CHUNK_SIZE", "16777217", "must be a whole number from 1 to 16777216"),
    ("ASYA_CHUNK_SIZE", "4k", "must be a whole number from 1 to 16777216"),
    ("ASYA_CHUNK_SIZE", "9" * 9999, "must be a whole number from 1 to 16777216"),
    ("ASYA_HANDLER_TIMEOUT", "-1", "must be a number of seconds, at least 0"),
    ("ASYA_HANDLER_TIMEOUT", "nan", "must be a number of seconds, at least 0"),
    ("ASYA_HANDLER_TIMEOUT", "inf", "must be a number of seconds, at least 0"),
    ("ASYA_HANDLER_TIMEOUT", "5s", "must be a number of seconds, at least 0"),
    ("ASYA_ENABLE_OOM_DETECTION", "2", "must be true, 1, yes, false, 0 or no"),
    ("ASYA_CUDA_CLEANUP_ON_OOM", "on", "must be true, 1, yes, false, 0 or no"),
    ("ASYA_SOCKET_MODE", "0888", "must be octal, 0 to 0777"),
    ("ASYA_SOCKET_MODE", "1777", "must be octal, 0 to 0777"),
    ("ASYA_CONCURRENCY", "0", "must be a whole number from 1 to 1024"),
    ("ASYA_MAX_MESSAGE_SIZE", "4294967296", "must be a whole number from 1 to 4294967295"),
    ("ASYA_READ_TIMEOUT", "0", "must be a number of seconds, above 0"),
    ("ASYA_JSON", "ujson", "must be stdlib, orjson or auto"),
    ("ASYA_BATCH_SIZE", "1025", "must be a whole number from 1 to 1024"),
    ("ASYA_BATCH_WAIT", "-0.1", "must be a number of seconds, at least 0"),
    ("ASYA_HANDLER_DEADLINE", "1m", "must be a number of seconds, at least 0"),
    *[
        ("ASYA_MEMORY_LIMIT", text, "must be 0, at least 16777216 bytes, or 1% to 100%")
        for text in ("90", "16777215", "512Mi", "0%", "101%", "9.5%", "%", "-1", "90 %", "9" * 99)
    ],
    ("ASYA_METRICS_PORT", "65536", "must be a whole number from 0 to 65535"),
]
RIGHT = [
    ("ASYA_HANDLER", "a.b.C.d", "a.b.C.d"),
    ("ASYA_INCLUDE_METADATA", "YES", True),
    ("ASYA_INCLUDE_METADATA", "1", True),
    ("ASYA_INCLUDE_METADATA", "No", False),
    ("ASYA_INCLUDE_METADATA", "", False),
    ("ASYA_INCLUDE_METADATA", " true\n", True),
    ("ASYA_CHUNK_SIZE", "", 4096),
    ("ASYA_HANDLER_TIMEOUT", "0.5", 0.5),
    ("ASYA_SOCKET_MODE", "666", 0o666),
    ("ASYA_MEMORY_LIMIT", "16777216", 16777216),
    ("ASYA_MEMORY_LIMIT", "90%", 0.9),
    ("ASYA_MEMORY_LIMIT", "100%", 1.0),
]


@pytest.mark.parametrize(("variable", "text", "message"), WRONG, ids=lambda value: value[:24])
def test_a_wrong_setting_is_refused_with_what_is_right(
    runtime: ModuleType, variable: str, text: str, message: str
) -> None:
    with pytest.raises(runtime.StartupError, match=re.escape(message)) as refusal:
        runtime.Settings(GOOD | {variable: text})
    assert str(refusal.value).startswith(f"{variable}={text[:200]}: ")


@pytest.mark.parametrize(("variable", "text", "value"), RIGHT)
def test_right_settings_are_read(
    runtime: ModuleType, variable: str, text: str, value: object
) -> None:
    settings = runtime.Settings(GOOD | {variable: text})
    assert getattr(settings, variable.removeprefix("ASYA_").lower()) == value


def test_defaults(runtime: ModuleType) -> None:
    assert vars(runtime.Settings(GOOD)) == {
        "handler": "app.echo",
        "socket_path": "/tmp/sockets/app.sock",
        "include_metadata": False,
        "chunk_size": 4096,
        "handler_timeout": 0.0,
        "enable_oom_detection": True,
        "cuda_cleanup_on_oom": True,
        "socket_mode": 0o660,
        "concurrency": 1,
        "max_message_size": 4294967295,
        "read_timeout": 60.0,
        "json": "auto",
        "batch_size": 1,
        "batch_wait": 0.0,
        "handler_deadline": 0.0,
        "memory_limit": 0,
        "metrics_port": 0,
    }


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"ASYA_HANDLER": ""}, "ASYA_HANDLER is not set; set it to module.function"),
        ({"ASYA_SOCKET_MODE": "9"}, "ASYA_SOCKET_MODE=9: must be octal, 0 to 0777"),
        (
            {"ASYA_JSON": "orjson"},
            "ASYA_JSON=orjson: orjson is not installed; install it or set ASYA_JSON=auto",
        ),
        (
            {"ASYA_JSON": "orjson", "ASYA_MEMORY_LIMIT": "999999999"},
            "ASYA_JSON=orjson: it crashes when memory is limited; set ASYA_JSON=auto, or "
            "ASYA_MEMORY_LIMIT=0",
        ),
    ],
    ids=["unset", "wrong", "no-orjson", "orjson-with-memory-limit"],
)
def test_the_process_says_one_line_and_exits_78(
    start: Start, folder: Path, environ: dict[str, str], line: str
) -> None:
    (folder / "orjson.py").write_text("raise ImportError")
    handler = environ.pop("ASYA_HANDLER", "app.echo")
    process = start(handler=handler, ready=False, **environ)
    assert process.wait() == 78
    assert process.log() == f"asya_runtime: {line}\n"
    assert not process.socket.exists()


def table(heading: str) -> list[list[str]]:
    """Give the rows of the first table after a heading of the README."""
    text = README.read_text().split(f"\n## {heading}\n", 1)[1]
    rows = re.findall(r"(?m)^\|(.*)\|$", text.split("\n## ", 1)[0])
    return [[cell.strip() for cell in row.split("|")] for row in rows[2:]]


def test_the_documented_settings_are_those_of_the_code(runtime: ModuleType) -> None:
    documented = [(row[0].strip("`"), row[1].strip("`")) for row in table("Settings")]
    coded = [(variable, default or "required") for variable, default, _ in runtime.SETTINGS]
    assert documented == coded


def test_the_documented_codes_are_those_of_the_code(runtime: ModuleType) -> None:
    documented = {
        row[0].strip("`"): (row[2], int(row[3]) if row[3] else None) for row in table("Error codes")
    }
    assert documented == runtime.CODES


def test_the_documented_bounds_are_those_of_the_code(runtime: ModuleType) -> None:
    checked = []
    for row in table("Settings"):
        variable, valid = row[0].strip("`"), row[2]
        bounds = re.fullmatch(r"(octal, )?(\d+) to (\d+)( bytes)?", valid)
        if bounds:
            low, high = (int(text, 8 if bounds[1] else 10) for text in bounds.group(2, 3))
            form = "%o" if bounds[1] else "%d"
            for number in (low, high):
                settings = runtime.Settings(GOOD | {variable: form % number})
                assert getattr(settings, variable.removeprefix("ASYA_").lower()) == number
            for number in (low - 1, high + 1):
                with pytest.raises(runtime.StartupError):
                    runtime.Settings(GOOD | {variable: form % number})
            checked.append(variable)
    bounded = [name for name, _, text in WRONG if "whole number" in text or "octal" in text]
    assert checked == list(dict.fromkeys(bounded))


EXCHANGES = {
    "Frames": "def echo(message): return message['payload']",
    "Attachments": "def echo(message): return {'out': message['payload']['in']}",
}


@pytest.mark.parametrize(("heading", "source"), EXCHANGES.items(), ids=EXCHANGES)
def test_the_documented_exchange_is_what_happens(start: Start, heading: str, source: str) -> None:
    text = (
        README.read_text()
        .split(f"\n## {heading}\n", 1)[1]
        .split("An exchange, byte for byte", 1)[1]
    )
    spoken: list[tuple[str, bytes, str]] = []  # who, the bytes, and what is written below them
    for line in text.split("```")[1].strip().splitlines():
        words = line.split()
        who = words.pop(0) if line[0] != " " else ""
        if re.fullmatch("([0-9a-f]{2} ?)+", " ".join(words)):
            data = bytes.fromhex("".join(words))
            before = ("", b"", "") if who else spoken.pop()
            spoken.append((who or before[0], before[1] + data, before[2]))
        else:
            who, data, said = spoken.pop()
            spoken.append((who, data, said + "".join(words)))
    client = start(source).client()
    for who, data, said in spoken:
        body = data[4:]
        assert said == f"N={len(body)}" + re.sub(rb"[ \0]", b"", body).decode()
        if who == "client":
            client.send(data)
        else:
            assert client.exactly(len(data)) == data
    assert [who for who, _, _ in spoken] == ["client", "runtime"]
