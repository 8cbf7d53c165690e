"""Where the parts of a YAML text are: ends, dashes, colons and lines. Positions are offsets."""

import itertools
import re
from collections import deque
from collections.abc import Iterator

from asya_injector.documents.nodes import Node

# Between the dash of an item and its value, and between a key and its colon.
_GAP = re.compile(r"(?:[ \t\r\n]+(?:#[^\n]*)?)*")


class Layout:
    """A text, and where the parts of its nodes are."""

    def __init__(self, text: str) -> None:
        self._text = text

    def find_end(self, node: Node) -> int:
        """Where the text of a node ends, without comments and blank lines behind it."""
        if node.style == "block" and isinstance(node.value, str):
            # Its end is at the next token, or behind the last line.
            block = self._text[node.start : node.end].rstrip(" ")
            return node.start + len(block.removesuffix("\n").removesuffix("\r"))
        if node.style == "block" and node.pairs:
            return self.find_pair_end(*node.pairs[-1])
        if node.style == "block" and node.items:
            return self.find_item_end(self.find_dashes(node)[-1], node.items[-1])
        return node.end

    def find_pair_end(self, key: Node, value: Node) -> int:
        """Where a pair of a mapping ends."""
        return self.find_colon(key) + 1 if value.is_empty else self.find_end(value)

    def find_item_end(self, dash: int, item: Node) -> int:
        """Where an item of a block list ends."""
        return dash + 1 if item.is_empty else self.find_end(item)

    def find_dashes(self, node: Node) -> list[int]:
        """Where the dashes of a block list are."""
        dashes = []
        position = node.start
        for item in node.items:
            found = _GAP.match(self._text, position)
            dash = found.end() if found else position
            dashes.append(dash)
            position = self.find_item_end(dash, item)
        return dashes

    def find_colon(self, key: Node) -> int:
        """Where the colon behind a key is."""
        return self._text.find(":", key.end)

    def find_line(self, position: int) -> int:
        """Where the line of a position starts."""
        return self._text.rfind("\n", 0, position) + 1

    def find_line_gap(self, position: int) -> str:
        """The line break before a position, and the indentation of its line."""
        line = self.find_line(position)
        rest = self._text[line:position]
        return "\n" + rest[: len(rest) - len(rest.lstrip(" \t"))]

    def find_next_line(self, position: int) -> int:
        """Where the next line starts; the end of the text behind the last one."""
        end = self._text.find("\n", position)
        return len(self._text) if end < 0 else end + 1

    def ends_in_open_block(self, node: Node) -> bool:
        """Whether a node ends with a block of text whose last line has no line break."""
        while node.pairs or node.items:
            node = node.pairs[-1][1] if node.pairs else node.items[-1]
        return node.style == "block" and not self._text.endswith("\n")


def has_aliases(root: Node | None) -> bool:
    """Whether a document uses an anchor or a merge key."""
    return any(node.style in ("alias", "merge") for node in _walk(root))


def find_dash_offset(root: Node, text: str) -> int:
    """Columns between a key and the dashes of the first list below one; 0 if there is no list."""
    for node in _walk(root):
        for key, value in node.pairs:
            if (
                value.style == "block"
                and value.items
                and "\n" in text[key.end : value.items[0].start]
            ):
                return max(value.column - node.column, 0)
    return 0


def _walk(root: Node | None) -> Iterator[Node]:
    pending = deque([root] if root else [])
    while pending:
        node = pending.popleft()
        yield node
        pending.extend(node.items)
        pending.extend(itertools.chain.from_iterable(node.pairs))
