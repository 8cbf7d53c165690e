"""Fuzz, in a short form: whatever the bytes, each complete frame has its reply.

The long form is `make fuzz`; a batch that fails here is named for it.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import pytest

from . import fuzz, oracle
from .conftest import Process, Start, eventually, frame

SEED = 20
BATCHES = 40


def begin(start: Start, folder: Path, **more: str) -> Process:
    environ = fuzz.settings(folder, **more)
    del environ["ASYA_HANDLER"]
    return start(oracle.HANDLER, "app.answer", **environ)


@pytest.mark.parametrize("concurrency", ["1", "3"])
def test_what_mutated_frames_get_is_what_the_contract_says(
    start: Start, folder: Path, concurrency: str
) -> None:
    process = begin(start, folder, ASYA_CONCURRENCY=concurrency)
    assert process.call({"a": 1}) == {"status": "ok", "result": {"a": 1}}
    report = fuzz.Report()
    fuzz.run(process, SEED, iter([0]), report)
    at_first = fuzz.footprint(process)
    fuzz.run(process, SEED, iter(range(1, BATCHES)), report)
    assert report.batches == BATCHES
    assert report.replies > 0.9 * report.frames > 1000
    eventually(lambda: fuzz.footprint(process)[2] <= at_first[2], "connections closed")
    assert fuzz.footprint(process)[0] - at_first[0] < 8192


def test_a_batch_follows_from_its_seed_and_number() -> None:
    assert fuzz.batch(1, 2) == fuzz.batch(1, 2)
    assert fuzz.batch(1, 2) != fuzz.batch(1, 3)
    assert fuzz.batch(1, 2) != fuzz.batch(2, 2)


WRONG = {
    "lost": ("return payload", "return payload if len(payload) != 1 else payload['lost']"),
    "changed": ("return payload", "return {**payload, 'more': 1}"),
    "silent": ("raise SystemExit(3)", "__import__('os')._exit(9)"),
}


@pytest.mark.parametrize(("text", "instead"), WRONG.values(), ids=WRONG)
def test_a_process_that_answers_wrongly_is_found_out(
    start: Start, folder: Path, text: str, instead: str
) -> None:
    environ = fuzz.settings(folder)
    del environ["ASYA_HANDLER"]
    process = start(oracle.HANDLER.replace(text, instead), "app.answer", **environ)
    one = dataclasses.replace(
        fuzz.batch(SEED, 0),
        windows=[frame({"payload": {"a": [1]}}) + frame({"payload": {"do": "exit"}})],
        end="close",
    )
    with pytest.raises(fuzz.Mismatch):
        fuzz.play(process.client(), one)


def test_a_failure_names_its_batch_keeps_its_bytes_and_can_be_replayed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fuzz, "ROOT", folder)
    monkeypatch.setattr(oracle, "HANDLER", oracle.HANDLER.replace("return payload", "return [1]"))
    monkeypatch.setattr(sys, "argv", ["fuzz", "--seed", "7", "--frames", "1000"])
    assert fuzz.main() == 1
    said = capsys.readouterr().out
    number = said.split("--batch ")[1].split("'")[0]
    assert f"fuzz: seed 7, batch {number}: reply " in said
    kept = (folder / "build" / f"fuzz-7-{number}.bin").read_bytes()
    assert kept == b"".join(fuzz.batch(7, int(number)).windows)
    monkeypatch.setattr(sys, "argv", ["fuzz", "--seed", "7", "--batch", number])
    assert fuzz.main() == 1
    assert f"fuzz: seed 7, batch {number}: reply " in capsys.readouterr().out


ELSEWHERE = [  # where orjson alone would answer otherwise
    b'{"payload":{"n":%d}}' % 2**64,
    b'{"payload":{"t":"\\ud800"}}',
    b'{"payload":{"n":1e400}}',
    b'{"payload":{"n":-0}}',
    b'{"payload":{"a":' + b"[" * 400 + b"]" * 400 + b"}}",
]


def test_orjson_answers_as_the_standard_library(start: Start, folder: Path) -> None:
    client = begin(start, folder, ASYA_JSON="orjson").client()
    mutated = [bodies(b"".join(fuzz.batch(SEED, n).windows)) for n in range(BATCHES // 2)]
    for body in (*ELSEWHERE, *itertools.chain(*mutated)):
        client.send(frame(body))
        reply = client.exactly(int.from_bytes(client.exactly(4), "big"))
        expected = oracle.reply_to(body)
        if isinstance(expected, bytes):  # texts and floats may have another form, not another value
            assert spelled(reply) == spelled(expected), body
        else:
            assert oracle.agrees(reply, expected), body


def spelled(reply: bytes) -> tuple[str, bytes]:
    head, _, attachments = reply.partition(b"\0")
    return repr(json.loads(head)), attachments


def bodies(window: bytes) -> list[bytes]:
    found = []
    while len(window) >= 4 and (size := int.from_bytes(window[:4], "big")) <= len(window) - 4:
        found += [window[4 : 4 + size]] if size <= oracle.LIMIT else []
        window = window[4 + size :]
    return found
