"""Which figures count as flat."""

import pytest

from e2e.load.trend import Trend

WARM = [10.0, 20.0, 28.0, 30.0]


@pytest.mark.parametrize(
    ("samples", "growth"),
    [
        ([*WARM, *[30.0] * 12], 0),
        ([*WARM, *[30.0] * 8, *[33.0] * 4], 3),
        ([*WARM, *[30.0] * 10, 90.0, 30.0], 0),  # a spike is not growth
        ([*WARM, *[30.0] * 8, 90.0, 90.0, 90.0, 30.0], 0),  # nor are resources that are freed
        ([*WARM, *[30.0 + at for at in range(12)]], 8),
        ([*WARM, *[30.0] * 8, *[20.0] * 4], -10),
    ],
)
def test_growth_is_from_the_second_to_the_last_quarter(samples: list[float], growth: float) -> None:
    trend = Trend("one", "MB", samples, bound=2)
    assert (trend.growth, trend.is_flat) == (growth, growth <= 2)


def test_a_row_shows_whether_the_figure_grows() -> None:
    cells = Trend("runtime", "memory, MB", [*WARM, *[30.0] * 8, *[33.0] * 4], bound=2).cells()
    assert cells == ["runtime", "memory, MB", "30", "33", "3", "2", "GROWS"]


def test_too_few_samples_are_an_error() -> None:
    with pytest.raises(ValueError, match="are not enough"):
        _ = Trend("one", "MB", [1.0, 2.0, 3.0], bound=2).growth
