"""The chart: renderings, values, safety rules, the example chart."""
