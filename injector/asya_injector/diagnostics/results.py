"""The results of `check`: what was checked, its state, what was found, and how to fix it."""

from __future__ import annotations

from dataclasses import dataclass

OK, WRONG, UNKNOWN = "ok", "wrong", "unknown"


@dataclass(frozen=True)
class CheckResult:
    """One row of the table. `state` is one of those above; `fix` is empty if the state is OK."""

    check: str
    state: str
    found: str
    fix: str = ""
