"""The section of a version in CHANGELOG.md, as notes of a release and as Artifact Hub's list."""

from __future__ import annotations

import re

# Artifact Hub's kinds by the changelog's headings.
_KINDS = {"Added": "added", "Changed": "changed", "Fixed": "fixed", "Removed": "removed"}


def notes(changelog: str, version: str) -> str:
    """The section of the version, without its heading; raises ValueError if there is none."""
    sections = re.split(r"^## (.+)\n", changelog, flags=re.MULTILINE)
    for heading, text in zip(sections[1::2], sections[2::2], strict=True):
        if version in re.findall(r"\d+\.\d+\.\d+", heading):
            return text.strip() + "\n"
    raise ValueError(f"CHANGELOG.md: no section for version {version}; add `## {version}`")


def changes(text: str) -> list[dict[str, str]]:
    """The items of release notes, in one line each; tables inside of items are left out."""
    found = []
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        kind = _KINDS.get(heading.strip())
        for item in re.split(r"^- ", body, flags=re.MULTILINE)[1:] if kind else ():
            lines = [line.strip() for line in item.splitlines()]
            words = " ".join(line for line in lines if not line.startswith("|")).split()
            found.append({"kind": str(kind), "description": " ".join(words)})
    return found
