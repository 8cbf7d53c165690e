"""Quantiles of the API server's histograms, for the time between two readings of its metrics."""

import math
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

Buckets = dict[float, float]  # the number of calls by the upper bound of their seconds, cumulative


def read(text: str, name: str, labels: Mapping[str, str]) -> Buckets:
    """The buckets of all series of a histogram that have these labels, added up."""
    buckets: Buckets = {}
    lines = [line for line in text.splitlines() if line.startswith(f"{name}_bucket{{")]
    for family in text_string_to_metric_families("\n".join([*lines, ""])):
        for sample in family.samples:
            if labels.items() <= sample.labels.items():
                bound = float(sample.labels["le"])
                buckets[bound] = buckets.get(bound, 0.0) + sample.value
    return buckets


def between(before: Buckets, after: Buckets) -> Buckets:
    """The calls from one reading to the next."""
    return {bound: count - before.get(bound, 0.0) for bound, count in sorted(after.items())}


def quantile(buckets: Buckets, share: float) -> float:
    """The seconds within which this share of the calls ended, interpolated as Prometheus does it.

    NaN without a call; the largest finite bound where the quantile is beyond all of them.
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
