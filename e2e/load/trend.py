"""Whether something grows: samples of a figure over a soak, in quarters. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HEADER = ["soak", "figure", "second quarter", "last quarter", "growth", "at most", ""]


@dataclass(frozen=True)
class Trend:
    """A figure of something, and how much its least value may be higher in the last quarter.

    The first quarter is not looked at: caches fill, and code is imported late. What is held for a
    moment, such as connections while many pods come at once, is in the most of a quarter; what is
    never let go of is in its least.
    """

    what: str
    figure: str
    samples: Sequence[float]
    bound: float

    @property
    def quarters(self) -> tuple[float, float]:
        """The least of the second and of the last quarter; ValueError below four samples."""
        quarter = len(self.samples) // 4
        if not quarter:
            raise ValueError(f"{self.what}: {len(self.samples)} samples tell nothing")
        second = self.samples[quarter : 2 * quarter]
        return min(second), min(self.samples[-quarter:])

    @property
    def growth(self) -> float:
        """Difference of the two."""
        second, last = self.quarters
        return last - second

    @property
    def is_flat(self) -> bool:
        """Whether it has grown by no more than the bound."""
        return self.growth <= self.bound

    def cells(self) -> list[str]:
        """The line's texts, as `HEADER` names them."""
        figures = [f"{value:.4g}" for value in (*self.quarters, self.growth, self.bound)]
        return [self.what, self.figure, *figures, "flat" if self.is_flat else "GROWS"]
