"""What became of the messages of a pipeline, by the log of its feed."""

import pytest

from e2e.load.queue import Flow

LOG = """\
sent m0 10.0
sent m1 11.0
result m0 id-0 12.0
sent m2 13.0
sent m99 14.0
result m2 id-2 15.5
result m2 id-2 17.0
dead m99 poison
"""


@pytest.mark.parametrize(
    ("began", "ended", "cells"),
    [
        pytest.param(0.0, 99.0, ["4", "2", "1", "1", "1", "2.5"], id="all"),
        pytest.param(12.5, 99.0, ["3", "1", "1", "1", "1", "2.5"], id="m0 was done before"),
        pytest.param(16.0, 99.0, ["2", "1", "1", "0", "1", "2.5"], id="a duplicate comes late"),
        pytest.param(0.0, 10.5, ["1", "1", "0", "0", "0", "2.0"], id="until the second is sent"),
        pytest.param(0.0, 5.0, ["0", "0", "0", "0", "0", "0.0"], id="nothing yet"),
    ],
)
def test_a_row_counts_what_was_on_its_way(began: float, ended: float, cells: list[str]) -> None:
    flow = Flow.parse(LOG)
    assert flow.cells("fault", began, ended) == ["fault", *cells]


def test_a_message_without_a_result_is_lost_unless_it_is_poison() -> None:
    flow = Flow.parse(LOG)
    assert flow.lost(0.0, 99.0) == ["m1"]
    assert (flow.answered_since(12.0), flow.answered_since(13.5)) == (True, False)


def test_only_complete_lines_are_read() -> None:
    assert list(Flow.parse("sent m0 10.0\nsent m1 1").sent) == ["m0"]
    assert [Flow.parse(log).is_complete for log in ("", "end", "end\n")] == [False, False, True]
