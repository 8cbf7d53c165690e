"""Read a YAML or JSON document: its value, and where each part of it is in the text.

As for kubectl, unknown tags are ignored, and of equal keys the last one counts. Documents that take
too much memory or depth are rejected: an alias can repeat a value that contains aliases.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from asya_injector.documents.scalars import DocumentError, convert_key, resolve

try:  # libyaml, which kubectl's parser is a translation of; fast
    from yaml.cyaml import CParser as _Parser  # type: ignore[attr-defined]
except ImportError:  # PyYAML was installed without it
    from yaml import SafeLoader as _Parser  # type: ignore[assignment]

MAX_DEPTH = 200
TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
# Values repeated by aliases, besides ten for each value in the text.
_MAX_REPEATED = 100_000
_JSON_TOKEN = re.compile(
    r'[ \t\r\n]*([{}\[\],:]|"(?:[^"\\]|\\.)*"|[^ \t\r\n{}\[\],:"]+)', re.DOTALL
)
_SURROGATE = re.compile("[\ud800-\udfff]")


class Node:
    """A value, and its place in the text.

    value: shared between a node and its aliases. start, end: of its text; the end of a block is at
    the next token. column: of the keys or dashes of a block collection. style: `plain`, `quoted` or
    `block` of a scalar; `flow` or `block` of a collection; `alias`; `merge` of a key. pairs: of a
    mapping; the last of equal keys counts. items: of a list. size: number of values in it.
    """

    __slots__ = ("column", "end", "items", "pairs", "size", "start", "style", "value")

    def __init__(self, value: Any, start: int, end: int, style: str) -> None:
        self.value = value
        self.start = start
        self.end = end
        self.style = style
        self.column = 0
        self.pairs: list[tuple[Node, Node]] = []
        self.items: list[Node] = []
        self.size = 1

    @property
    def is_empty(self) -> bool:
        """Whether it has no text, as the value in `key:`."""
        return self.start == self.end

    @property
    def is_flow(self) -> bool:
        """Whether it is a collection in brackets or braces."""
        return self.style == "flow"


def compose_yaml(text: str) -> Node | None:
    """Read the first document of a YAML text; None if it is empty. Raises DocumentError."""
    try:
        return _compose(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        problem = str(error.problem or error.context)
        raise DocumentError(problem, mark.line + 1 if mark else 0) from None
    except (yaml.YAMLError, UnicodeEncodeError) as error:
        raise DocumentError(str(error)) from None


def compose_json(text: str) -> Node:
    """Read a JSON text that is known to be valid, and not deeper than `MAX_DEPTH`."""
    tokens = ((match[1], match.start(1), match.end(1)) for match in _JSON_TOKEN.finditer(text))
    return _compose_json(next(tokens), tokens)


def decode_json(text: str, start: int = 0) -> tuple[Any, int]:
    """Read a JSON value in a text; returns it and its end. Raises ValueError or RecursionError."""
    return _DECODER.raw_decode(text, start)


def check_json(value: Any) -> Any:
    """A JSON value as kubectl reads it; raises DocumentError."""
    if _measure_depth(value) > MAX_DEPTH:
        raise DocumentError(TOO_DEEP)
    return _replace_surrogates(value)


def _reject_constant(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_reject_constant)


def _compose(text: str) -> Node | None:
    """Build the nodes from the parser's events, without recursion."""
    parser = _Parser(text)
    builder = _Builder(text)
    try:
        while True:
            event: Any = parser.get_event()
            if builder.add(event) or type(event) is yaml.StreamEndEvent:
                return builder.root
    finally:
        parser.dispose()


class _Builder:
    """Builds the nodes of a document."""

    def __init__(self, text: str) -> None:
        self.root: Node | None = None
        self._text = text
        self._anchors: dict[str, Node | None] = {}
        # Open collections, each with its anchor and its content.
        self._open: list[tuple[Node, str | None, list[Node]]] = []
        self._repeated = self._count = 0

    def add(self, event: Any) -> bool:
        """Add an event; returns whether the document is complete."""
        kind = type(event)
        if kind is yaml.ScalarEvent:
            return self._append(_build_scalar(event), event.anchor, event)
        if kind is yaml.AliasEvent:
            node = _build_alias(event, self._anchors)
            self._repeated += node.size
            return self._append(node, None, event)
        if kind in (yaml.MappingStartEvent, yaml.SequenceStartEvent):
            self._start(event, {} if kind is yaml.MappingStartEvent else [])
        elif kind in (yaml.MappingEndEvent, yaml.SequenceEndEvent):
            node, anchor, children = self._open.pop()
            _close(node, children, self._text, event)
            return self._append(node, anchor, event)
        return False

    def _start(self, event: Any, value: Any) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise DocumentError(TOO_DEEP, event.start_mark.line + 1)
        style = "flow" if event.flow_style else "block"
        node = Node(value, event.start_mark.index, event.end_mark.index, style)
        if event.anchor:
            self._anchors[event.anchor] = None
        self._open.append((node, event.anchor, []))

    def _append(self, node: Node, anchor: str | None, event: Any) -> bool:
        if anchor:
            self._anchors[anchor] = node
        self._count += 1
        if self._repeated > _MAX_REPEATED + 10 * self._count:
            raise DocumentError("aliases repeat too many values", event.start_mark.line + 1)
        if self._open:
            self._open[-1][2].append(node)
            return False
        self.root = node
        return True


def _build_scalar(event: Any) -> Node:
    start, end = event.start_mark.index, event.end_mark.index
    if event.style in ("|", ">"):
        style = "block"
    else:
        style = "quoted" if event.style in ("'", '"') else "plain"
    return Node(resolve(event), start, end, style)


def _build_alias(event: Any, anchors: dict[str, Node | None]) -> Node:
    line = event.start_mark.line + 1
    if event.anchor not in anchors:
        raise DocumentError(f"unknown anchor {event.anchor!r}", line)
    original = anchors[event.anchor]
    if original is None:
        raise DocumentError(f"anchor {event.anchor!r} contains itself", line)
    node = Node(original.value, event.start_mark.index, event.end_mark.index, "alias")
    node.size = original.size
    return node


def _close(node: Node, children: list[Node], text: str, event: Any) -> None:
    """Give a collection its content, its value and its end."""
    node.size += sum(child.size for child in children)
    node.start = _skip_properties(text, node.start)
    node.end = event.end_mark.index
    if isinstance(node.value, list):
        node.items = children
        node.value += [child.value for child in children]
    else:
        node.pairs = list(zip(children[::2], children[1::2], strict=True))
        _fill_mapping(node, event)
        node.start = node.start if node.is_flow else children[0].start
    node.column = node.start - text.rfind("\n", 0, node.start) - 1


def _fill_mapping(node: Node, event: Any) -> None:
    for key, value in node.pairs:
        if key.value == "<<" and key.style == "plain":
            merged = value.value if isinstance(value.value, list) else [value.value]
            for each in reversed(merged):
                if not isinstance(each, dict):
                    line = event.start_mark.line + 1
                    raise DocumentError("a merge key needs a mapping or a list of them", line)
                node.value.update(each)
            key.style = "merge"
        else:
            key.value = convert_key(key.value, event)
            node.value[key.value] = value.value


def _skip_properties(text: str, position: int) -> int:
    """Where the content of a node starts, behind its anchor, tag and comments."""
    found = _PROPERTIES.match(text, position)
    return found.end() if found else position


_PROPERTIES = re.compile(r"(?:[&!][^ \t\r\n]*(?:[ \t\r\n]+(?:#[^\n]*)?)*)*")


def _compose_json(token: tuple[str, int, int], tokens: Iterator[tuple[str, int, int]]) -> Node:
    word, start, end = token
    if word not in ("{", "["):
        return Node(
            check_json(json.loads(word)), start, end, "quoted" if word[0] == '"' else "plain"
        )
    node = Node([] if word == "[" else {}, start, end, "flow")
    children = []
    for each in tokens:
        if each[0] in ("}", "]"):
            node.end = each[2]
            break
        if each[0] not in (",", ":"):
            children.append(_compose_json(each, tokens))
    if word == "[":
        node.items = children
        node.value = [child.value for child in children]
    else:
        node.pairs = list(zip(children[::2], children[1::2], strict=True))
        node.value = {key.value: value.value for key, value in node.pairs}
    return node


def _measure_depth(value: Any) -> int:
    """The number of levels of a value, up to one more than `MAX_DEPTH`."""
    level, depth = [value], 0
    while level and depth <= MAX_DEPTH:
        level = [
            child
            for each in level
            if isinstance(each, (dict, list))
            for child in (each.values() if isinstance(each, dict) else each)
        ]
        depth += bool(level)
    return depth


def _replace_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_replace_surrogates(each) for each in value]
    if isinstance(value, dict):
        return {_replace_surrogates(key): _replace_surrogates(each) for key, each in value.items()}
    return value
