"""The benchmark with bytes: what it sends, and how it judges what it has seen."""

import json

import pytest

from bench.attachments import FORMS, bytes_goals
from bench.contenders import BARE_BYTES, BYTES_CONTENDERS, ServerError
from bench.runtime import Figures

DATA = bytes(range(256))
REPLIES = {
    "attachment": b'{"status":"ok","result":{"echo":{"data":{"$bytes":256}}}} \0' + DATA,
    "raw": DATA,
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_carries_the_same_bytes(form: str) -> None:
    body = FORMS[form].write(DATA)
    if form != "raw":
        payload = json.loads(body.partition(b"\0")[0])["payload"]
        assert list(payload) == ["data"]
        reply = json.dumps({"status": "ok", "result": {"echo": payload}}).encode()
        assert FORMS[form].read(REPLIES.get(form, reply)) == DATA
    assert form != "attachment" or body.index(b"\0") % 16 == 15


@pytest.mark.parametrize("number", [255, 257])
def test_a_reply_that_announces_other_bytes_is_wrong(number: int) -> None:
    body = REPLIES["attachment"].replace(b"256", b"%d" % number)
    with pytest.raises(ServerError, match="wrong reply"):
        FORMS["attachment"].read(body)


def test_goals_compare_with_the_best_of_each_kind() -> None:
    rates = dict(
        zip([one.label for one in BYTES_CONTENDERS], [100, 80, 10, 8, 40, 20], strict=True)
    )
    assert rates[BARE_BYTES] == 100
    figures = {label: Figures(rate, rate / 100, 0, 0, 0) for label, rate in rates.items()}
    goals = bytes_goals(figures, 1.1)
    assert [(goal.value, goal.row()[2]) for goal in goals] == [
        (8, "met"),
        (0.8, "met"),
        (2, "met"),
        (1.1, "met"),
    ]
