"""What `make demo-queue` shows and checks, without a cluster."""

import asyncio
from pathlib import PurePath
from typing import Any

import pytest
from asya_queue.messages import encode

from examples.demo import DemoError
from examples.queue import demo
from examples.queue.picture import Picture

HELD = {
    "identify": 12,
    "sort": 3,
    "results": 50,
    "shelf-code": 40,
    "shelf-text": 8,
    "shelf-others": 2,
    "identify.dead": 1,
    "sort.dead": 0,
}
DRAWN = """\
   identify [12] ──► identify ──► sort [3] ──► sort ──┬─► results [50]
                        │                             ├─► shelf-code [40]
                        ▼                             ├─► shelf-text [8]
                 identify.dead [1]                    └─► shelf-others [2]
  ███████░░░░░░░░░░░░░░░░░░░░░░░ 50 of 200, 10 messages/s"""


def test_the_picture_shows_what_each_queue_holds() -> None:
    assert Picture(200).draw(HELD, 5.0) == DRAWN
    empty = dict.fromkeys(HELD, 0)
    assert {len(line) for line in Picture(200).draw(empty, 0.0).splitlines()} <= set(range(79))


def test_a_line_says_the_same_where_there_is_no_terminal() -> None:
    assert Picture(200).describe(HELD, 5.0) == (
        "   5.0 s: 10 messages/s; waiting: identify 12, sort 3, results 50, shelf-code 40, "
        "shelf-text 8, shelf-others 2, identify.dead 1, sort.dead 0"
    )


def test_the_files_are_of_all_types_whose_names_tell_them() -> None:
    files = demo.choose_files()
    assert len(files) == len(set(files)) == demo.FILES
    kinds = {demo.TYPES[PurePath(name).suffix] for name in files}
    assert kinds == set(demo.TYPES.values())


class Channel:
    """A broker's channel whose queues hold messages."""

    def __init__(self, held: dict[str, list[Any]]) -> None:
        self.held = held
        self.name = ""

    async def get_queue(self, name: str) -> "Channel":
        self.name = name
        return self

    async def get(self, **_: Any) -> Any:
        queue = self.held.get(self.name, [])
        return queue.pop(0) if queue else None


class Message:
    def __init__(self, payload: Any) -> None:
        self.body = encode({"payload": payload})
        self.headers: dict[str, Any] = {}


NAME = "examples/queue/model/sorting.py"
DATA = (demo.REPO / NAME).read_bytes()


@pytest.mark.parametrize(
    ("held", "error"),
    [
        pytest.param(
            {
                "results": [Message({"name": NAME, "type": "python"})],
                "shelf-code": [Message({"name": NAME, "data": DATA})],
            },
            "",
            id="right",
        ),
        pytest.param({}, f"1 of 1 types are wrong: {NAME} is missing", id="missing"),
        pytest.param(
            {"results": [Message({"name": NAME, "type": "shell"})]},
            f"1 of 1 types are wrong: {NAME} is shell",
            id="wrong type",
        ),
        pytest.param(
            {
                "results": [Message({"name": NAME, "type": "python"})],
                "shelf-others": [Message({"name": NAME, "data": DATA[1:]})],
            },
            f"the bytes of {NAME} have changed on their way",
            id="wrong bytes",
        ),
    ],
)
def test_one_wrong_file_fails_the_demo(held: dict[str, list[Any]], error: str) -> None:
    channel: Any = Channel({name: list(messages) for name, messages in held.items()})
    if not error:
        asyncio.run(demo.check_results(channel, [NAME]))
        return
    with pytest.raises(DemoError, match=f"^{error}$"):
        asyncio.run(demo.check_results(channel, [NAME]))
