"""The image of the cluster tests: its handlers and its fake torch."""
