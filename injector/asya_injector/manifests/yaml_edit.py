"""Changes to a YAML document as edits of its text: what nobody changed stays as it was typed.

A document is compared with what it shall say, node by node; each difference becomes an insertion,
a deletion or a replacement at the place of that node. Comments, order, quotes, indentation and
anchors of everything else are not touched, because nothing else is written.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode


@dataclass(frozen=True)
class _Edit:
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class _Style:
    """How a document is typed: the columns before a dash below its key, and line ends."""

    dash: int
    newline: str


def edit_yaml(text: str, before: Any, after: Any) -> str:
    """The text of one YAML document that said `before`, changed to say `after`.

    It cannot always be done in place (anchors, `<<`); whoever calls must read the result again.
    """
    root = YAML(typ="safe", pure=True).compose(text)
    if root is None:
        return text
    editor = _Editor(text, _style(text, root))
    editor.change(root, before, after)
    # From the end to the start, so that places stay valid; at one place deletions come first.
    for edit in sorted(editor.edits, key=lambda edit: (edit.start, edit.end), reverse=True):
        text = text[: edit.start] + edit.text + text[edit.end :]
    return text


class _Editor:
    def __init__(self, text: str, style: _Style) -> None:
        self.edits: list[_Edit] = []
        self._text = text
        self._style = style

    def change(self, node: Node, before: Any, after: Any, *, colon: int = -1) -> None:
        """Note the edits that make `node`, which says `before`, say `after`.

        colon: where the colon of its key is, if it has one.
        """
        if before == after and type(before) is type(after):
            return
        both = type(before) if before and after and type(before) is type(after) else None
        if not _keeps(before, after):
            both = None
        if both is dict and isinstance(node, MappingNode):
            self._change_mapping(node, before, after)
        elif both is list and isinstance(node, SequenceNode):
            self._change_sequence(node, before, after)
        elif _is_empty(node) and colon >= 0:  # its mark lies at the next token
            self._edit(colon + 1, colon + 1, " " + render_flow(after))
        elif colon >= 0 and not isinstance(node, ScalarNode) and not cast(Any, node).flow_style:
            # On its own lines it may stand as far left as its key, where a value on one may not.
            self._edit(colon + 1, self._end(node), " " + render_flow(after))
        else:
            self._edit(node.start_mark.index, self._end(node), render_flow(after))

    def _change_mapping(self, node: MappingNode, before: Any, after: Any) -> None:
        pairs = {key.value: (key, value) for key, value in node.value}
        for name, (_, value) in pairs.items():
            if name in before and name in after:
                self.change(value, before[name], after[name], colon=self._colon(pairs[name][0]))
        gone = [name in before and name not in after for name in pairs]
        if node.flow_style:
            ends = (self._end_of_pair(*pair) for pair in node.value)
            starts = (key.start_mark.index for key, _ in node.value)
            self._delete_runs([*zip(starts, ends, strict=True)], gone)
        else:
            for name, is_gone in zip(pairs, gone, strict=True):
                if is_gone:
                    self._delete_key(node, *pairs[name])
        # A key that `<<` brings is overridden by one of its own.
        added = {
            name: value
            for name, value in after.items()
            if name not in pairs and not (name in before and before[name] == value)
        }
        if not added:
            return
        if node.flow_style:
            end = self._end_of_pair(*node.value[-1])
            for name, value in added.items():
                self._edit(end, end, f", {render_flow(name)}: {render_flow(value)}")
        else:
            self._insert_lines(
                self._after_line(self._end(node)), added, column=node.start_mark.column
            )

    def _delete_key(self, node: MappingNode, key: Node, value: Node) -> None:
        following = [each.start_mark.index for each, _ in node.value]
        position = following.index(key.start_mark.index)
        start, end = key.start_mark.index, self._end_of_pair(key, value)
        if self._line_start(start) == start - node.start_mark.column and not (
            self._text[self._line_start(start) : start].strip()
        ):
            self._edit(self._line_start(start), self._after_line(end), "")
        else:  # the first one, behind a dash
            self._edit(start, following[position + 1] if len(following) > 1 else end, "")

    def _change_sequence(self, node: SequenceNode, before: list[Any], after: list[Any]) -> None:
        old, new = [_identity(each) for each in before], [_identity(each) for each in after]
        gone = [False] * len(old)
        for _, low, high, start, end in SequenceMatcher(
            None, old, new, autojunk=False
        ).get_opcodes():
            if old[low:high] == new[start:end]:
                for offset in range(high - low):
                    self.change(
                        node.value[low + offset], before[low + offset], after[start + offset]
                    )
                continue
            self._insert_items(node, low, after[start:end])
            gone[low:high] = [True] * (high - low)
        if node.flow_style:
            spans = [(item.start_mark.index, self._end(item)) for item in node.value]
            self._delete_runs(spans, gone)
            return
        for item in itertools.compress(node.value, gone):
            dash = self._dash(item)
            self._edit(self._line_start(dash), self._after_line(self._end(item)), "")

    def _insert_items(self, node: SequenceNode, position: int, values: list[Any]) -> None:
        if not values:
            return
        if node.flow_style:
            if position:
                place = self._end(node.value[position - 1])
                self._edit(place, place, "".join(f", {render_flow(value)}" for value in values))
            else:
                place = node.value[0].start_mark.index
                self._edit(place, place, "".join(f"{render_flow(value)}, " for value in values))
            return
        if position:
            place = self._after_line(self._end(node.value[position - 1]))
        else:
            # Above the comments of the first item, which stay with it.
            place = self._line_start(node.start_mark.index)
            while place and self._text[self._line_start(place - 1) : place].lstrip().startswith(
                "#"
            ):
                place = self._line_start(place - 1)
        self._insert_lines(place, values, column=node.start_mark.column)

    def _delete_runs(self, spans: Sequence[tuple[int, int]], gone: Sequence[bool]) -> None:
        """Delete items of a collection on one line, each run of them with its commas."""
        position = 0
        for is_gone, run in itertools.groupby(gone):
            first, position = position, position + len(list(run))
            if is_gone and position < len(spans):
                self._edit(spans[first][0], spans[position][0], "")
            elif is_gone:
                self._edit(spans[first - 1][1], spans[-1][1], "")

    def _dash(self, item: Node) -> int:
        return self._text.rindex("-", 0, max(item.start_mark.index, 1))

    def _insert_lines(self, place: int, value: Any, *, column: int) -> None:
        lines = render_block(value, dash=self._style.dash)
        if isinstance(value, list) and self._style.dash:
            lines = re.sub(rf"^ {{{self._style.dash}}}", "", lines, flags=re.MULTILINE)
        indent = " " * column
        lines = re.sub(r"^(?=[^\n])", indent, lines, flags=re.MULTILINE)
        lines = lines.replace("\n", self._style.newline)
        if place and self._text[place - 1] != "\n":  # the last line of a file without its end
            lines = self._style.newline + lines.removesuffix(self._style.newline)
        self._edit(place, place, lines)

    def _edit(self, start: int, end: int, text: str) -> None:
        # Those of one place are applied last first, so that they stand in the order they came.
        self.edits.insert(0, _Edit(start, end, text))

    def _end(self, node: Any) -> int:
        """Where a node's own text ends: without the comments and blank lines behind it."""
        if isinstance(node, ScalarNode) or node.flow_style or not node.value:
            end: int = node.end_mark.index
            if isinstance(node, ScalarNode) and node.style in ("|", ">"):
                # Its mark lies at the next token, or behind its last line.
                end = len(self._text[:end].rstrip(" "))
                return len(self._text[:end].removesuffix("\n").removesuffix("\r"))
            return end
        last = node.value[-1]
        return self._end_of_pair(*last) if isinstance(last, tuple) else self._end(last)

    def _end_of_pair(self, key: Node, value: Node) -> int:
        return self._colon(key) + 1 if _is_empty(value) else self._end(value)

    def _colon(self, key: Node) -> int:
        return self._text.find(":", key.end_mark.index)

    def _line_start(self, index: int) -> int:
        return self._text.rfind("\n", 0, index) + 1

    def _after_line(self, index: int) -> int:
        end = self._text.find("\n", index)
        return len(self._text) if end < 0 else end + 1


def _keeps(before: Any, after: Any) -> bool:
    """Whether anything of a collection stays; else it is written anew."""
    if isinstance(before, list) and isinstance(after, list):
        return bool({*map(_identity, before)} & {*map(_identity, after)})
    return isinstance(before, dict) and isinstance(after, dict) and bool({*before} & {*after})


def _is_empty(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.start_mark.index == node.end_mark.index


def _identity(item: Any) -> Any:
    """What makes an item of a list the same one after a change."""
    if isinstance(item, dict):
        metadata = item.get("metadata")
        named = metadata if isinstance(metadata, dict) else {}
        words = [item.get(key) for key in ("kind", "name", "mountPath")]
        words += [named.get(key) for key in ("namespace", "name")]
        if any(words):
            return json.dumps(words)
    return json.dumps(item, sort_keys=True, default=str)


def _style(text: str, root: Node) -> _Style:
    offsets = (
        value.start_mark.column - key.start_mark.column
        for key, value in _pairs(root)
        if isinstance(value, SequenceNode)
        and not value.flow_style
        and value.start_mark.line > key.start_mark.line
    )
    return _Style(next(offsets, 0), "\r\n" if "\r\n" in text else "\n")


def _pairs(root: Node) -> Iterator[tuple[Node, Node]]:
    """All pairs of key and collection, each once however often it is referred to."""
    waiting, seen = [root], set()
    while waiting:
        node = waiting.pop(0)
        if id(node) in seen or isinstance(node, ScalarNode):
            continue
        seen.add(id(node))
        for each in node.value:
            if isinstance(each, tuple):
                if not isinstance(each[1], ScalarNode):
                    yield each
                waiting.append(each[1])
            else:
                waiting.append(each)


# MERGED New YAML: values as text that YAML 1.1 and 1.2 read alike.

# Plain in every version of YAML; all else is quoted, because 1.1 (which Kubernetes reads) and 1.2
# take different words for numbers and truth values.
_PLAIN = re.compile(r"-{0,2}[A-Za-z][A-Za-z0-9_./-]*|/[A-Za-z0-9_./-]*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_ESCAPED = {
    code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF)
}


def render_block(value: Any, *, dash: int = 0) -> str:
    """A value as YAML of its own, in block style. dash: columns before a `-` below its key."""
    writer: Any = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    writer.width = 1 << 20
    writer.allow_unicode = True
    writer.indent(mapping=2, sequence=2 + dash, offset=dash)
    writer.representer.add_representer(str, _represent)
    stream = io.StringIO()
    writer.dump(value, stream)
    return stream.getvalue().removesuffix("...\n")


def render_flow(value: Any) -> str:
    """A value on one line, in flow style."""
    if isinstance(value, dict):
        pairs = (f"{render_flow(key)}: {render_flow(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(render_flow, value)) + "]"
    if isinstance(value, str):
        style = _quotes(value)
        if style != '"':
            return f"{style}{value}{style}"
    return json.dumps(value, ensure_ascii=False).translate(_ESCAPED)


def _represent(representer: Any, text: str) -> Any:
    style = _quotes(text)
    lines = text.split("\n")
    if (
        len(lines) > 1
        and not lines[0].startswith(" ")
        and all(line.isprintable() and line == line.rstrip() for line in lines)
    ):
        style = "|"
    return representer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _quotes(text: str) -> str:
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return ""
    return "'" if '"' in text and "'" not in text and text.isprintable() else '"'
