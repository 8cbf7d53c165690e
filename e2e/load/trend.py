"""Whether a figure grows during a soak: its samples, compared by quarters. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HEADER = ["soak", "figure", "second quarter", "last quarter", "growth", "at most", ""]


@dataclass(frozen=True)
class Trend:
    """The samples of a figure, and how much its minimum may grow after the second quarter.

    The first quarter does not count: caches fill, and modules are imported late. Resources that are
    used for a moment, such as connections during a burst of pods, raise the maximum of a quarter.
    Resources that leak raise its minimum.
    """

    what: str
    figure: str
    samples: Sequence[float]
    bound: float

    @property
    def quarters(self) -> tuple[float, float]:
        """The minimum of the second and of the last quarter; ValueError below four samples."""
        quarter = len(self.samples) // 4
        if not quarter:
            raise ValueError(f"{self.what}: {len(self.samples)} samples are not enough")
        second = self.samples[quarter : 2 * quarter]
        return min(second), min(self.samples[-quarter:])

    @property
    def growth(self) -> float:
        """The difference of the two."""
        second, last = self.quarters
        return last - second

    @property
    def is_flat(self) -> bool:
        """Whether the growth is within the bound."""
        return self.growth <= self.bound

    def cells(self) -> list[str]:
        """The texts of the columns in `HEADER`."""
        figures = [f"{value:.4g}" for value in (*self.quarters, self.growth, self.bound)]
        return [self.what, self.figure, *figures, "flat" if self.is_flat else "GROWS"]
