"""Quantiles of the API server's histograms."""

import math

import pytest

from tests.support import histogram

TEXT = """\
# HELP seconds Time.
# TYPE seconds histogram
seconds_bucket{name="ours",operation="admit",le="0.005"} 10
seconds_bucket{name="ours",operation="admit",le="0.025"} 90
seconds_bucket{name="ours",operation="admit",le="+Inf"} 100
seconds_bucket{name="ours",operation="validate",le="0.005"} 1
seconds_bucket{name="ours",operation="validate",le="0.025"} 1
seconds_bucket{name="ours",operation="validate",le="+Inf"} 1
seconds_bucket{name="theirs",operation="admit",le="+Inf"} 7
seconds_sum{name="ours",operation="admit"} 1.2
other_seconds_bucket{name="ours",le="+Inf"} 5
"""


def test_series_with_the_given_labels_are_added_up() -> None:
    assert histogram.read(TEXT, "seconds", {"name": "ours"}) == {
        0.005: 11,
        0.025: 91,
        math.inf: 101,
    }
    assert histogram.read(TEXT, "seconds", {"name": "unknown"}) == {}


def test_only_calls_between_two_readings_count() -> None:
    assert histogram.between({0.5: 2, math.inf: 3}, {0.5: 5, math.inf: 9}) == {0.5: 3, math.inf: 6}
    assert histogram.between({}, {0.5: 5, math.inf: 9}) == {0.5: 5, math.inf: 9}


@pytest.mark.parametrize(
    ("share", "seconds"),
    [(0.05, 0.5), (0.1, 1.0), (0.5, 1.5), (0.9, 2.0), (0.95, 3.5), (0.99, 4.7)],
)
def test_a_quantile_is_interpolated_within_its_bucket(share: float, seconds: float) -> None:
    buckets = {1.0: 10.0, 2.0: 90.0, 5.0: 100.0, math.inf: 100.0}
    assert histogram.quantile(buckets, share) == pytest.approx(seconds)


def test_a_quantile_beyond_all_bounds_is_the_last_bound_and_without_calls_it_is_nan() -> None:
    assert histogram.quantile({1.0: 10.0, math.inf: 100.0}, 0.5) == 1.0
    assert math.isnan(histogram.quantile({1.0: 0.0, math.inf: 0.0}, 0.5))
    assert math.isnan(histogram.quantile({}, 0.5))
