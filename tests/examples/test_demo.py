"""The demo succeeds only if every reply is as expected."""

import json
from pathlib import Path
from typing import Any

import pytest

from examples import demo

RIGHT = {"status": "ok", "result": 1}
WRONG = {"status": "ok", "result": 2}


@pytest.mark.parametrize(
    ("replies", "differences"),
    [
        pytest.param([RIGHT, RIGHT], [], id="all as expected"),
        pytest.param(
            [RIGHT, WRONG],
            [f"reply 2 is {json.dumps(WRONG)}, expected {json.dumps(RIGHT)}"],
            id="a wrong one",
        ),
        pytest.param([RIGHT], ["1 replies to 2 messages"], id="one is missing"),
        pytest.param([RIGHT] * 3, ["3 replies to 2 messages"], id="one too many"),
    ],
)
def test_differences_between_replies_and_expected_replies_are_described(
    replies: list[Any], differences: list[str]
) -> None:
    assert list(demo.find_differences(replies, [RIGHT, RIGHT])) == differences


def test_every_message_has_an_expected_reply_and_one_of_them_is_an_error(examples: Path) -> None:
    messages = (examples / "messages.jsonl").read_text("utf-8").splitlines()
    replies = (examples / "replies.jsonl").read_text("utf-8").splitlines()
    assert len(messages) == len(replies)
    assert [json.loads(reply)["status"] for reply in replies].count("error") == 1


@pytest.mark.parametrize(
    ("arguments", "environment", "error"),
    [
        pytest.param(["--wrong"], {}, "usage: demo.py [--clean]", id="unknown option"),
        pytest.param([], {"INJECTOR_IMAGE": ""}, "INJECTOR_IMAGE is not set", id="no image"),
        pytest.param([], {"INJECTOR_IMAGE": "a:b"}, "no cluster is running", id="no cluster"),
    ],
)
def test_a_missing_requirement_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environment: dict[str, str],
    error: str,
) -> None:
    monkeypatch.setattr("sys.argv", ["demo.py", *arguments])
    monkeypatch.setenv("PATH", "/nonexistent")  # no kubectl, so no cluster
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert demo.main() == 2
    assert error in capsys.readouterr().err
