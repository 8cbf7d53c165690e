"""Benchmarks: `bench.run` (runtime and injector) and `bench.cluster` (cost in a cluster)."""
