"""The injection itself: a pod in, a pod out. No I/O."""
