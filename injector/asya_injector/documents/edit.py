"""Change a YAML or JSON document by editing its text, so that the rest stays as it was typed.

The value of a document is compared with its new value, node by node. Each difference becomes an
insertion, a deletion or a replacement at the place of that node. Comments, order, quotes,
indentation and anchors of everything else are kept, because nothing else is written.
"""

import itertools
import json
import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from functools import partial
from operator import itemgetter
from typing import Any

from asya_injector.documents.layout import Layout, find_dash_offset
from asya_injector.documents.nodes import Node
from asya_injector.documents.render import JsonStyle, YamlStyle, render_block, render_flow


def edit_yaml(text: str, root: Node, after: Any) -> str:
    """Edit the text of a YAML document with this root to have the value `after`.

    Anchors and `<<` make some edits impossible, so the caller must read the result and compare it.
    """
    return _edit(YamlStyle(text), text, root, after)


def edit_json(text: str, root: Node, after: Any) -> str:
    """Edit the text of a JSON document with this root to have the value `after`."""
    return _edit(JsonStyle(text), text, root, after)


def _edit(style: YamlStyle, text: str, root: Node, after: Any) -> str:
    editor = _Editor(text, style, dash_offset=find_dash_offset(root, text))
    editor.change(root, after)
    return editor.apply()


class _Editor:
    """Collects the edits of a text."""

    def __init__(self, text: str, style: YamlStyle, *, dash_offset: int) -> None:
        self._text = text
        self._layout = Layout(text)
        self._style = style
        self._dash_offset = dash_offset
        self._edits: list[tuple[int, int, str]] = []  # start, end, and what replaces it

    def apply(self) -> str:
        """Return the edited text."""
        # At one position, insertions come before deletions, in the order they were made.
        parts, position = [], 0
        for start, end, text in sorted(self._edits, key=itemgetter(0, 1)):
            parts += [self._text[position:start], text]
            position = max(position, end)
        result = "".join([*parts, self._text[position:]])
        if result.endswith("\n") and not self._text.endswith("\n"):
            return result.removesuffix("\n").removesuffix("\r")
        return result

    def change(self, node: Node, after: Any, *, colon: int = -1) -> None:
        """Add the edits that change the value of a node.

        colon: position of the colon behind its key, if that is in a block mapping.
        """
        before = node.value
        if before == after and type(before) is type(after):
            return
        is_collection = node.style in ("flow", "block") and isinstance(before, (dict, list))
        can_change = is_collection and type(before) is type(after) and self._can_change(node, after)
        if can_change and isinstance(before, dict):
            self._change_mapping(node, after)
        elif can_change:
            self._change_list(node, after)
        elif is_collection and self._can_rename(node, after):
            self._rename_key(*node.pairs[0], after)
        elif colon >= 0 and after is None:
            self._edit(colon + 1, max(self._layout.find_end(node), colon + 1), "")
        elif colon >= 0 and node.is_empty:  # its own place is at the next token
            self._insert(colon + 1, " " + render_flow(after))
        elif colon >= 0 and is_collection and not node.is_flow:
            # Lines of a block may start in the column of the key; those of a flow value may not.
            self._edit(colon + 1, self._layout.find_end(node), " " + render_flow(after))
        else:
            gap = self._layout.find_line_gap(node.start)
            self._edit(node.start, self._layout.find_end(node), self._style.render(after, gap))

    def _can_change(self, node: Node, after: Any) -> bool:
        """Whether a collection keeps a part, or keeps its brackets."""
        if node.is_flow and (not node.value or not after):
            return "\n" not in self._text[node.start : node.end]
        if isinstance(after, list):
            if len(after) == len(node.value) and all(map(_is_nameless, [*node.value, *after])):
                return True
            return not {*map(_identify, node.value)}.isdisjoint(map(_identify, after))
        return not after.keys().isdisjoint(node.value)

    def _can_rename(self, node: Node, after: Any) -> bool:
        """Whether a block with one key gets another key, with a value of the same style."""
        if node.is_flow or not isinstance(after, dict) or len(node.pairs) != 1 or len(after) != 1:
            return False
        (key, value), (content,) = node.pairs[0], after.values()
        has_both = bool(value.pairs and content) and isinstance(content, dict)
        return has_both and key.style != "merge" and value.style in ("flow", "block")

    def _rename_key(self, key: Node, value: Node, after: Any) -> None:
        """Replace a key and its value; comments behind each of them stay."""
        ((name, content),) = after.items()
        self._edit(key.start, key.end, render_flow(name))
        lines = self._render_lines(content, value.column).strip() if not value.is_flow else ""
        self._edit(value.start, self._layout.find_end(value), lines or render_flow(content))

    def _change_mapping(self, node: Node, after: Any) -> None:
        before = node.value
        pairs = {key.value: (key, value) for key, value in node.pairs if key.style != "merge"}
        for name, (key, value) in pairs.items():
            if name in after:
                colon = -1 if node.is_flow else self._layout.find_colon(key)
                self.change(value, after[name], colon=colon)
        removed = [key.style != "merge" and key.value not in after for key, _ in node.pairs]
        self._remove_keys(node, removed)
        # A key that `<<` provides is overridden by a new one.
        added = {
            name: value
            for name, value in after.items()
            if name not in pairs and not (name in before and before[name] == value)
        }
        if not added:
            return
        if node.is_flow:
            render = self._style.render_pair
            items = [partial(render, *pair) for pair in added.items()]
            self._insert_flow(node, len(node.pairs), items)
        else:
            position = self._layout.find_next_line(self._layout.find_end(node))
            if position == len(self._text) and self._layout.ends_in_open_block(node):
                # A line break behind its text would become part of it.
                start = node.pairs[-1][0].start
                line = self._layout.find_line(start)
                position = position if self._text[line:start].strip() else line
            self._insert_lines(position, added, column=node.column)

    def _remove_keys(self, node: Node, removed: Sequence[bool]) -> None:
        starts = [key.start for key, _ in node.pairs]
        ends = [self._layout.find_pair_end(*pair) for pair in node.pairs]
        if node.is_flow:
            self._remove_runs([*zip(starts, ends, strict=True)], removed)
            return
        for start, end, following in itertools.compress(
            zip(starts, ends, [*starts[1:], -1], strict=True), removed
        ):
            line = self._layout.find_line(start)
            if self._text[line:start].strip() and following >= 0:  # behind a dash
                self._edit(start, following, "")
            elif self._text[line:start].strip():
                self._edit(start, end, "")
            else:
                self._edit(line, self._layout.find_next_line(end), "")

    def _change_list(self, node: Node, after: list[Any]) -> None:
        old, new = [*map(_identify, node.value)], [*map(_identify, after)]
        removed = [False] * len(old)
        for tag, low, high, start, end in _compare(old, new):
            is_same = tag == "equal" or (
                tag == "replace"
                and high - low == end - start
                and all(map(_is_nameless, [*node.value[low:high], *after[start:end]]))
            )
            if is_same:
                for offset in range(high - low):
                    self.change(node.items[low + offset], after[start + offset])
                continue
            if start < end:
                self._insert_items(node, low, after[start:end])
            removed[low:high] = [True] * (high - low)
        if node.is_flow:
            spans = [(item.start, self._layout.find_end(item)) for item in node.items]
            self._remove_runs(spans, removed)
            return
        dashes = self._layout.find_dashes(node)
        for dash, item in itertools.compress(zip(dashes, node.items, strict=True), removed):
            line, end = (
                self._layout.find_line(dash),
                self._layout.find_next_line(self._layout.find_item_end(dash, item)),
            )
            if self._text[line:dash].strip():  # behind another dash
                line = dash
            self._edit(line, end, "")

    def _insert_items(self, node: Node, index: int, values: list[Any]) -> None:
        if node.is_flow:
            items = [partial(self._style.render, value) for value in values]
            self._insert_flow(node, index, items)
            return
        dashes = self._layout.find_dashes(node)
        if index:
            end = self._layout.find_item_end(dashes[index - 1], node.items[index - 1])
            self._insert_lines(self._layout.find_next_line(end), values, column=node.column)
            return
        line = self._layout.find_line(dashes[0])
        if self._text[line : dashes[0]].strip():  # behind another dash
            lines = self._render_lines(values, node.column)
            self._insert(dashes[0], lines.lstrip(" ") + " " * node.column)
            return
        # Comments above the first item stay with it.
        while line and self._text[self._layout.find_line(line - 1) : line].lstrip().startswith("#"):
            line = self._layout.find_line(line - 1)
        self._insert_lines(line, values, column=node.column)

    def _insert_flow(self, node: Node, index: int, items: Sequence[Callable[[str], str]]) -> None:
        """Insert items into a collection in brackets or braces; each is rendered for a gap."""
        spans = [(item.start, self._layout.find_end(item)) for item in node.items] or [
            (key.start, self._layout.find_pair_end(key, value)) for key, value in node.pairs
        ]
        if not spans:
            line = self._layout.find_line_gap(node.start).rpartition("\n")[2]
            gap = self._style.inner_gap(line)
            text = ("," + gap if gap else self._style.comma).join(item(gap) for item in items)
            closing = self._style.newline + line if gap else ""
            self._insert(node.start + 1, gap + text + closing)
            return
        gap = self._find_gap(node, spans)
        comma = "," + gap if gap else self._style.comma
        if index:
            self._insert(spans[index - 1][1], "".join(comma + item(gap) for item in items))
        else:
            self._insert(spans[0][0], "".join(item(gap) + comma for item in items))

    def _find_gap(self, node: Node, spans: Sequence[tuple[int, int]]) -> str:
        """The line break and the spaces between the items; empty if they are on one line."""
        for (_, before), (after, _) in itertools.pairwise([(0, node.start + 1), *spans]):
            gap = self._text[before:after].removeprefix(",")
            if "\n" in gap and not gap.strip():
                return gap
        return ""

    def _remove_runs(self, spans: Sequence[tuple[int, int]], removed: Sequence[bool]) -> None:
        """Remove items of a flow collection, each run of them with its commas."""
        position = 0
        for is_removed, run in itertools.groupby(removed):
            first, position = position, position + len(list(run))
            if is_removed and position < len(spans):
                self._edit(spans[first][0], spans[position][0], "")
            elif is_removed and first:
                self._edit(spans[first - 1][1], spans[-1][1], "")
            elif is_removed:
                self._edit(spans[0][0], spans[-1][1], "")

    def _insert_lines(self, position: int, value: Any, *, column: int) -> None:
        lines = self._render_lines(value, column)
        newline = self._style.newline
        if position and self._text[position - 1] != "\n":  # the file ends without a newline
            lines = newline + lines.removesuffix(newline)
        self._insert(position, lines)

    def _render_lines(self, value: Any, column: int) -> str:
        lines = render_block(value, dash_offset=self._dash_offset)
        lines = re.sub(r"^(?=[^\n])", " " * column, lines, flags=re.MULTILINE)
        return lines.replace("\n", self._style.newline)

    def _insert(self, position: int, text: str) -> None:
        self._edit(position, position, text)

    def _edit(self, start: int, end: int, text: str) -> None:
        self._edits.append((start, end, text))


def _compare(old: list[str], new: list[str]) -> Sequence[tuple[str, int, int, int, int]]:
    """The differences of two lists, as SequenceMatcher names them."""
    if old == new:
        return [("equal", 0, len(old), 0, len(new))]
    return SequenceMatcher(None, old, new, autojunk=False).get_opcodes()


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


def _is_nameless(item: Any) -> bool:
    return isinstance(item, dict) and _identify(item).startswith("{")
