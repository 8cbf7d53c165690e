"""What the checks of `check` return."""

from dataclasses import dataclass

OK, WRONG, UNKNOWN = "ok", "wrong", "unknown"


@dataclass(frozen=True)
class Finding:
    """What a check has found. fix: how to solve the problem; empty if there is none."""

    text: str
    fix: str = ""


@dataclass(frozen=True)
class CheckResult:
    """A row of the table: the check, its state (one of those above), what it found, and the fix."""

    check: str
    state: str
    found: str
    fix: str = ""
