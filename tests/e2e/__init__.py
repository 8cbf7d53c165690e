"""The parts of the cluster tests that need no cluster."""
