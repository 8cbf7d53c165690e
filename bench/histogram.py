"""Quantiles of the API server's own histograms: what happened between two readings of /metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

Buckets = dict[float, float]  # upper bound in seconds: how many took at most so long
_LINE = re.compile(r"^(\w+?)_bucket\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def read(text: str, name: str, labels: Mapping[str, str]) -> Buckets:
    """The buckets of all series of a histogram that carry these labels, added up."""
    buckets: Buckets = {}
    for found, described, count in _LINE.findall(text):
        if found == name:
            has = dict(_LABEL.findall(described))
            if labels.items() <= has.items():
                bound = float(has["le"])
                buckets[bound] = buckets.get(bound, 0.0) + float(count)
    return buckets


def between(before: Buckets, after: Buckets) -> Buckets:
    """What came in from one reading to the next."""
    return {bound: count - before.get(bound, 0.0) for bound, count in sorted(after.items())}


def quantile(buckets: Buckets, share: float) -> float:
    """Seconds within which this share of the calls was, as Prometheus reckons: even in a bucket.

    NaN without a call; the largest finite bound where it lies beyond all of them.
    """
    total = max(buckets.values(), default=0.0)
    if not total:
        return math.nan
    low, below = 0.0, 0.0
    for bound, count in sorted(buckets.items()):
        if count >= share * total:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (share * total - below) / (count - below)
        low, below = bound, count
    return low
