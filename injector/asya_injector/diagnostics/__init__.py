"""Health of an installation: what `check` finds and `prune` removes."""
