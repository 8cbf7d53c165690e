"""The README's table of values, made of the comments in values.yaml."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import yaml

BEGIN = "<!-- values: made from values.yaml by `make chart-render` -->\n"
END = "<!-- end of values -->\n"

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
    lines = ["| value | default | meaning |\n", "| --- | --- | --- |\n"]
    paths = dict(described(values))
    for path, text in paths.items():
        default = tree
        for key in path.split("."):
            default = default[key]
        is_heading = any(other.startswith(f"{path}.") for other in paths)
        shown = "" if is_heading else f"`{json.dumps(default)}`"
        escaped = text.replace("|", "\\|")
        lines.append(f"| `{path}` | {shown} | {escaped} |\n")
    return "".join(lines)


def updated(readme: str, values: str) -> str:
    """The README with the table as it should be; ValueError if it has no place for one."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError("the README has no place for the table of values")
    return f"{before}{BEGIN}\n{table(values)}\n{END}{after}"
