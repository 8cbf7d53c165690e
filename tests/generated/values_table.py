"""The table of values in the chart's README, made of the comments in values.yaml."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import yaml

from tests.generated.tables import markdown

# A key, after the comment lines above it, indented by two spaces a level.
_LINE = re.compile(r"( *)(?:# ?(?P<comment>.*)|(?P<key>[A-Za-z-]+):.*)\n")


def described(values: str) -> Iterator[tuple[str, str]]:
    """Each key with a comment above it, as path and the comment's text."""
    path: list[str] = []
    comment: list[str] = []
    for line in values.splitlines(keepends=True):
        match = _LINE.fullmatch(line)
        if not match:
            comment = []
        elif match["comment"] and "generated" in match["comment"].split(":")[0].split():
            comment = []  # a mark of `make sync`
        elif match["key"]:
            path = [*path[: len(match[1]) // 2], match["key"]]
            if comment:
                yield ".".join(path), " ".join(comment)
            comment = []
        else:
            comment.append(match["comment"])


def table(values: str) -> str:
    """The Markdown table of all described keys."""
    tree = yaml.safe_load(values)
    rows = []
    paths = dict(described(values))
    for path, text in paths.items():
        default = tree
        for key in path.split("."):
            default = default[key]
        is_heading = any(other.startswith(f"{path}.") for other in paths)
        shown = "" if is_heading else f"`{json.dumps(default)}`"
        rows.append((f"`{path}`", shown, text))
    return markdown(("value", "default", "meaning"), rows)
