"""A finding about a cluster: what was looked at, how it is, and how to mend it."""

from __future__ import annotations

from dataclasses import dataclass

OK, WRONG, UNKNOWN = "ok", "wrong", "unknown"


@dataclass(frozen=True)
class CheckResult:
    """One line of the table. `state` is one of those above; `fix` is empty where all is well."""

    look: str
    state: str
    found: str
    fix: str = ""
