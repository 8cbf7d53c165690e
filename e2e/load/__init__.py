"""Load during faults, and the ledger that finds lost messages and pods."""
