"""Change a YAML document by editing its text, so that everything else stays as it was typed.

The value of a document is compared with its new value, node by node. Each difference becomes an
insertion, a deletion or a replacement at the place of that node. Comments, order, quotes,
indentation and anchors of everything else are kept, because nothing else is written.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

# Plain words that every version of YAML reads as strings. All others are quoted, because YAML 1.1
# (which Kubernetes reads) and 1.2 have different words for numbers and booleans.
_PLAIN = re.compile(r"-{0,2}[A-Za-z][A-Za-z0-9_./-]*|/[A-Za-z0-9_./-]*")
_RESERVED_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_ESCAPES = {
    code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF)
}


def edit_yaml(text: str, before: Any, after: Any) -> str:
    """Edit the text of a YAML document with the value `before` to have the value `after`.

    Anchors and `<<` make some edits impossible, so the caller must read the result and compare it.
    """
    root = YAML(typ="safe", pure=True).compose(text)
    if root is None:
        return text
    editor = _Editor(text, dash_offset=_find_dash_offset(root))
    editor.change(root, before, after)
    return editor.apply()


def render_block(value: Any, *, dash_offset: int = 0) -> str:
    """Write a value as a YAML document in block style.

    dash_offset: columns between a key and the dashes of the list below it.
    """
    writer: Any = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    writer.width = 1 << 20
    writer.allow_unicode = True
    writer.indent(mapping=2, sequence=2 + dash_offset, offset=dash_offset)
    writer.representer.add_representer(str, _represent_string)
    stream = io.StringIO()
    writer.dump(value, stream)
    return stream.getvalue().removesuffix("...\n")


def render_flow(value: Any) -> str:
    """Write a value on one line, in flow style."""
    if isinstance(value, dict):
        pairs = (f"{render_flow(key)}: {render_flow(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(render_flow, value)) + "]"
    if isinstance(value, str):
        quotes = _choose_quotes(value)
        if quotes != '"':
            return f"{quotes}{value}{quotes}"
    return json.dumps(value, ensure_ascii=False).translate(_ESCAPES)


@dataclass(frozen=True)
class _Edit:
    """Replaces text[start:end]."""

    start: int
    end: int
    text: str


class _Editor:
    """Collects the edits of a text."""

    def __init__(self, text: str, *, dash_offset: int) -> None:
        self._text = text
        self._newline = "\r\n" if "\r\n" in text else "\n"
        self._dash_offset = dash_offset
        self._edits: list[_Edit] = []

    def apply(self) -> str:
        """Return the edited text."""
        # From the end to the start, so that positions stay valid. At one position, deletions come
        # first, and then insertions in reverse, so that they end up in the order they were made.
        text = self._text
        edits = reversed(self._edits)
        for edit in sorted(edits, key=lambda edit: (edit.start, edit.end), reverse=True):
            text = text[: edit.start] + edit.text + text[edit.end :]
        return text

    def change(self, node: Node, before: Any, after: Any, *, colon: int = -1) -> None:
        """Add the edits that change the value of a node.

        colon: position of the colon behind its key, if it has one.
        """
        if before == after and type(before) is type(after):
            return
        has_common_parts = _have_common_parts(before, after)
        if has_common_parts and isinstance(node, MappingNode):
            self._change_mapping(node, before, after)
        elif has_common_parts and isinstance(node, SequenceNode):
            self._change_sequence(node, before, after)
        elif colon >= 0 and _is_empty(node):  # its own mark is at the next token
            self._insert(colon + 1, " " + render_flow(after))
        elif colon >= 0 and not isinstance(node, ScalarNode) and not cast(Any, node).flow_style:
            # Lines of a block may start in the column of the key; those of a flow value may not.
            self._edit(colon + 1, self._end(node), " " + render_flow(after))
        else:
            self._edit(node.start_mark.index, self._end(node), render_flow(after))

    def _change_mapping(self, node: MappingNode, before: Any, after: Any) -> None:
        pairs = {key.value: (key, value) for key, value in node.value}
        for name, (key, value) in pairs.items():
            if name in before and name in after:
                self.change(value, before[name], after[name], colon=self._colon(key))
        self._remove_keys(node, [name in before and name not in after for name in pairs])
        # A key that `<<` provides is overridden by a new one.
        added = {
            name: value
            for name, value in after.items()
            if name not in pairs and not (name in before and before[name] == value)
        }
        if added and node.flow_style:
            end = self._end_of_pair(*node.value[-1])
            for name, value in added.items():
                self._insert(end, f", {render_flow(name)}: {render_flow(value)}")
        elif added:
            end = self._next_line(self._end(node))
            self._insert_lines(end, added, column=node.start_mark.column)

    def _remove_keys(self, node: MappingNode, removed: Sequence[bool]) -> None:
        starts = [key.start_mark.index for key, _ in node.value]
        ends = [self._end_of_pair(*pair) for pair in node.value]
        if node.flow_style:
            self._remove_runs([*zip(starts, ends, strict=True)], removed)
            return
        for start, end, following in itertools.compress(
            zip(starts, ends, [*starts[1:], ends[-1]], strict=True), removed
        ):
            line = self._line_start(start)
            if self._text[line:start].strip():  # behind a dash
                self._edit(start, following, "")
            else:
                self._edit(line, self._next_line(end), "")

    def _change_sequence(self, node: SequenceNode, before: list[Any], after: list[Any]) -> None:
        old, new = [*map(_identify, before)], [*map(_identify, after)]
        removed = [False] * len(old)
        for tag, low, high, start, end in SequenceMatcher(
            None, old, new, autojunk=False
        ).get_opcodes():
            if tag == "equal":
                for offset in range(high - low):
                    item = node.value[low + offset]
                    self.change(item, before[low + offset], after[start + offset])
                continue
            if start < end:
                self._insert_items(node, low, after[start:end])
            removed[low:high] = [True] * (high - low)
        if node.flow_style:
            spans = [(item.start_mark.index, self._end(item)) for item in node.value]
            self._remove_runs(spans, removed)
            return
        for item in itertools.compress(node.value, removed):
            dash = self._text.rindex("-", 0, max(item.start_mark.index, 1))
            self._edit(self._line_start(dash), self._next_line(self._end(item)), "")

    def _insert_items(self, node: SequenceNode, index: int, values: list[Any]) -> None:
        previous = node.value[index - 1] if index else None
        if node.flow_style and previous:
            text = "".join(f", {render_flow(value)}" for value in values)
            self._insert(self._end(previous), text)
        elif node.flow_style:
            text = "".join(f"{render_flow(value)}, " for value in values)
            self._insert(node.value[0].start_mark.index, text)
        elif previous:
            line = self._next_line(self._end(previous))
            self._insert_lines(line, values, column=node.start_mark.column)
        else:
            # Comments above the first item stay with it.
            line = self._line_start(node.start_mark.index)
            while line and self._text[self._line_start(line - 1) : line].lstrip().startswith("#"):
                line = self._line_start(line - 1)
            self._insert_lines(line, values, column=node.start_mark.column)

    def _remove_runs(self, spans: Sequence[tuple[int, int]], removed: Sequence[bool]) -> None:
        """Remove items of a flow collection, each run of them with its commas."""
        position = 0
        for is_removed, run in itertools.groupby(removed):
            first, position = position, position + len(list(run))
            if is_removed and position < len(spans):
                self._edit(spans[first][0], spans[position][0], "")
            elif is_removed:
                self._edit(spans[first - 1][1], spans[-1][1], "")

    def _insert_lines(self, position: int, value: Any, *, column: int) -> None:
        lines = render_block(value, dash_offset=self._dash_offset)
        if isinstance(value, list) and self._dash_offset:
            lines = re.sub(rf"^ {{{self._dash_offset}}}", "", lines, flags=re.MULTILINE)
        lines = re.sub(r"^(?=[^\n])", " " * column, lines, flags=re.MULTILINE)
        lines = lines.replace("\n", self._newline)
        if position and self._text[position - 1] != "\n":  # the file ends without a newline
            lines = self._newline + lines.removesuffix(self._newline)
        self._insert(position, lines)

    def _insert(self, position: int, text: str) -> None:
        self._edit(position, position, text)

    def _edit(self, start: int, end: int, text: str) -> None:
        self._edits.append(_Edit(start, end, text))

    def _end(self, node: Any) -> int:
        """Where the text of a node ends, without comments and blank lines behind it."""
        end: int = node.end_mark.index
        if isinstance(node, ScalarNode) and node.style in ("|", ">"):
            # The mark is at the next token, or behind the last line.
            end = len(self._text[:end].rstrip(" "))
            return len(self._text[:end].removesuffix("\n").removesuffix("\r"))
        if isinstance(node, ScalarNode) or node.flow_style or not node.value:
            return end
        last = node.value[-1]
        return self._end_of_pair(*last) if isinstance(last, tuple) else self._end(last)

    def _end_of_pair(self, key: Node, value: Node) -> int:
        return self._colon(key) + 1 if _is_empty(value) else self._end(value)

    def _colon(self, key: Node) -> int:
        return self._text.find(":", key.end_mark.index)

    def _line_start(self, position: int) -> int:
        return self._text.rfind("\n", 0, position) + 1

    def _next_line(self, position: int) -> int:
        end = self._text.find("\n", position)
        return len(self._text) if end < 0 else end + 1


def _have_common_parts(before: Any, after: Any) -> bool:
    """Whether both are collections of one type with a common key or item."""
    if isinstance(before, list) and isinstance(after, list):
        return not {*map(_identify, before)}.isdisjoint(map(_identify, after))
    return (
        isinstance(before, dict) and isinstance(after, dict) and not before.keys().isdisjoint(after)
    )


def _identify(item: Any) -> str:
    """What an item of a list and its changed version have in common."""
    if isinstance(item, dict):
        metadata = item.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        names = [item.get(key) for key in ("kind", "name", "mountPath")]
        names += [metadata.get(key) for key in ("namespace", "name")]
        if any(names):
            return json.dumps(names)
    return json.dumps(item, sort_keys=True, default=str)


def _is_empty(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.start_mark.index == node.end_mark.index


def _find_dash_offset(root: Node) -> int:
    """Columns between a key and the dashes of the first list below one; 0 if there is no list."""
    pending, seen = [root], set()
    while pending:
        node = pending.pop(0)
        if isinstance(node, ScalarNode) or id(node) in seen:
            continue
        seen.add(id(node))  # an alias is the same node again
        if isinstance(node, SequenceNode):
            pending += node.value
            continue
        for key, value in node.value:
            if (
                isinstance(value, SequenceNode)
                and not value.flow_style
                and value.start_mark.line > key.start_mark.line
            ):
                offset: int = value.start_mark.column - key.start_mark.column
                return offset
            pending.append(value)
    return 0


def _represent_string(representer: Any, text: str) -> Any:
    style = _choose_quotes(text)
    lines = text.split("\n")
    if (
        len(lines) > 1
        and not lines[0].startswith(" ")
        and all(line.isprintable() and line == line.rstrip() for line in lines)
    ):
        style = "|"
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _choose_quotes(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED_WORDS:
        return ""
    return "'" if '"' in text and "'" not in text and text.isprintable() else '"'
