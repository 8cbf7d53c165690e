"""Manifests as files contain them: read into documents, and written with minimal changes.

Only documents that can concern the injector are read: those with an `asya.sh/` key or the name of a
runtime ConfigMap. All others, and unchanged ones, are written byte for byte. A changed document
keeps its comments, order and style (see `edit`).
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from asya_injector.documents.edit import edit_json, edit_yaml
from asya_injector.documents.layout import has_aliases
from asya_injector.documents.nodes import (
    TOO_DEEP,
    Node,
    check_json,
    compose_json,
    compose_yaml,
    decode_json,
)
from asya_injector.documents.render import render_block, render_json
from asya_injector.documents.scalars import DocumentError

SUFFIXES = (".yaml", ".yml", ".json")
_BOM = "\ufeff"
_SPACE = " \t\r\n"
_CONTENT = re.compile(r"[^ \t\r\n]")
_LINE_END = re.compile(r"[ \t]*\r?\n?")
# No text in YAML can contain this at the start of a line, not even a block of literal text.
_MARKER = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_COMMENTS_AND_DIRECTIVES = re.compile(r"([ \t]*([#%][^\n]*)?\r?(\n|\Z))*")
_DIRECTIVE = re.compile(r"([ \t]*(#[^\n]*)?\r?\n)*%")
_COMMENTS_AT_END = re.compile(
    r"^(#[^\n]*\n|[ \t\r]*\n)*#[^\n]*(\n|\Z)(#[^\n]*\n|[ \t\r]*\n)*\Z", re.MULTILINE
)
# Keys of ours, those that look so, and the names of runtime ConfigMaps.
_CONCERNS_US = re.compile(r"asya(\.sh|\.io|-runtime|[\w.-]{0,50}/handler)")
# What a quoted text may contain in place of an ASCII character, or of nothing.
_ESCAPE = re.compile(
    r"\\(?:x([2-7][0-9a-fA-F])|u00([2-7][0-9a-fA-F])|U000000([2-7][0-9a-fA-F])|\r?\n[ \t]*)"
)
_HEAD = re.compile(r"^(apiVersion|kind):[ \t]*[\"']?([\w./-]+)", re.MULTILINE)
_METADATA = re.compile(
    r"^metadata:[ \t]*(?:#[^\n]*)?\r?\n((?:[ \t]+[^\n]*(?:\n|\Z))+)", re.MULTILINE
)
# Bytes that are not UTF-8; see `decode`.
_UNDECODED = re.compile("[\udc80-\udcff]")
_ADDED_MARKER = re.compile(r"---\r?\n")
_NAME = re.compile(r"^([ \t]+)(name|namespace):[ \t]*[\"']?([\w./-]+)", re.MULTILINE)


class ManifestError(Exception):
    """A file cannot be read: one line that says where and why."""


@dataclass(frozen=True)
class Document:
    """A document of a file; `number` counts from 1.

    text: as it was read, with the `---` in front of it. value: as Kubernetes reads it; None if it
    is empty, or was not read. root: its nodes, if they were built. has_bom: the file begins with a
    byte order mark and this document.
    """

    source: str
    number: int
    text: str
    value: Any = None
    root: Node | None = field(default=None, compare=False, repr=False)
    is_json: bool = False
    is_read: bool = True
    has_bom: bool = False

    @property
    def has_marker(self) -> bool:
        """Whether it starts with `---`."""
        return not self.is_json and _MARKER.search(self.text) is not None

    @property
    def has_directive(self) -> bool:
        """Whether it starts with a directive, before which no document can be added."""
        return not self.is_json and _DIRECTIVE.match(self.text) is not None

    @property
    def place(self) -> str:
        """The document in a message."""
        return f"{self.source}:{self.number}"

    @cached_property
    def head(self) -> dict[str, Any]:
        """Kind and name of a document that was not read, as far as its text shows them."""
        head: dict[str, Any] = {match[1]: match[2] for match in _HEAD.finditer(self.text)}
        metadata = _METADATA.search(self.text)
        names = list(_NAME.finditer(metadata[1])) if metadata else []
        column = min((len(name[1]) for name in names), default=0)
        head["metadata"] = {name[2]: name[3] for name in names if len(name[1]) == column}
        return head


def find_files(path: Path) -> list[Path]:
    """Find all manifests in a directory and below, sorted by name; a file is returned as it is.

    Raises ManifestError if a directory has none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES and each.is_file())
    if not found:
        patterns = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
        raise ManifestError(f"{path}: contains no file named {patterns}")
    return found


def decode(content: bytes) -> str:
    """The text of a file; bytes that are not UTF-8 become half surrogates, for `encode`."""
    return content.decode(errors="surrogateescape")


def encode(text: str) -> bytes:
    """The bytes of a text from `decode`."""
    return text.encode(errors="surrogateescape")


def read_documents(source: str, text: str, *, read_all: bool = False) -> list[Document]:
    """Read the documents of a text that concern the injector, or all; raises ManifestError."""
    body = text.removeprefix(_BOM)
    documents: list[Document] = []
    if body.lstrip(_SPACE)[:1] in ("{", "["):
        documents = _read_json(source, body, read_all=read_all)
    if not documents:
        for number, chunk in enumerate(_split_yaml(body), 1):
            document = Document(source, number, chunk, is_read=read_all or _concerns_us(chunk))
            documents.append(_parse(document) if document.is_read else document)
    if body != text:
        documents[0] = replace(documents[0], has_bom=True)
    return documents


def edit_document(document: Document, value: Any) -> Document | None:
    """Change a document to have this value; None if it cannot keep its comments and style."""
    if value == document.value:
        return document
    root = document.root or _compose(document)
    edit = edit_json if document.is_json else edit_yaml
    edited = replace(document, text=edit(document.text, root, value) if root else document.text)
    try:
        edited = _parse(edited)
    except (ManifestError, ValueError):
        return None
    # An anchor or a merge key has the same text for two places, and only one of them changes.
    return edited if edited.value == value else None


def uses_anchors(document: Document) -> bool:
    """Whether a document has the same text for several places."""
    return not document.is_json and has_aliases(document.root)


def render_document(value: Any, *, like: Document) -> Document:
    """Write a value in the format of another document, with a `---` if that one has it."""
    if like.is_json:
        return replace(like, text=render_json(value, like.text), value=value)
    text = "---\n" * like.has_marker + render_block(value)
    return replace(like, text=text.replace("\n", _find_newline(like.text)), value=value)


def join_documents(documents: Sequence[Document]) -> str:
    """The text of a file with these documents; YAML, unless all of them are JSON."""
    is_yaml = not all(document.is_json for document in documents)
    parts: list[str] = []
    has_content, is_open = False, False
    for document in documents:
        newline = _find_newline(document.text)
        if is_open:
            parts.append(newline)
        if has_content and is_yaml and not document.has_marker:
            parts.append(f"---{newline}")
        parts.append(document.text)
        has_content = has_content or bool(document.text.strip())
        is_open = not "".join(parts[-2:]).endswith("\n") and has_content
    return "".join(parts)


def remove_documents(pairs: Iterable[tuple[Document, Document | None]]) -> list[Document]:
    """Return the second of each pair; None removes the document.

    A document that was added by `render_document` and `join_documents` is removed without a trace.
    Comments behind a removed document are kept, because they may belong to the next one.
    """
    kept: list[Document] = []
    is_marker_added = False
    for document, output in pairs:
        if output:
            text = _ADDED_MARKER.sub("", output.text, count=1) if is_marker_added else output.text
            kept.append(replace(output, text=text))
            is_marker_added = False
            continue
        comments = None if document.is_json else _COMMENTS_AT_END.search(document.text)
        if comments:
            kept.append(replace(document, text=comments[0], value=None))
        is_marker_added = not (document.is_json or document.has_marker or comments)
    return kept


def _concerns_us(text: str) -> bool:
    """Whether a text has, perhaps with escapes, a key of ours or the name of our ConfigMaps."""
    if "\\" in text:
        text = _ESCAPE.sub(_unescape, text)
    if "\0" in text:  # of UTF-16, which is an error if it concerns us
        text = text.replace("\0", "")
    return "asya" in text and _CONCERNS_US.search(text) is not None


def _unescape(match: re.Match[str]) -> str:
    code = match[1] or match[2] or match[3]
    return chr(int(code, 16)) if code else ""


def _find_newline(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _split_yaml(text: str) -> list[str]:
    starts = [marker.start() for marker in _MARKER.finditer(text)]
    # Comments and directives before the first marker belong to the first document.
    first = starts[0] if starts else len(text)
    if not starts or not _COMMENTS_AND_DIRECTIVES.fullmatch(text, 0, first):
        starts.insert(0, 0)
    starts[0] = 0
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def _read_json(source: str, text: str, *, read_all: bool) -> list[Document]:
    """Read a stream of JSON; nothing if it is something else, such as a YAML flow mapping."""
    documents: list[Document] = []
    start = 0
    while content := _CONTENT.search(text, start):
        begin = content.start()
        document = Document(source, len(documents) + 1, "", is_json=True)
        try:
            value, end = decode_json(text, begin)
            line_end = _LINE_END.match(text, end)
            end = line_end.end() if line_end else end
            is_read = read_all or _concerns_us(text[start:end])
            if is_read:
                _reject_undecoded(document.place, text[start:end])
            value = check_json(value) if is_read else None
        except RecursionError:
            if read_all or _concerns_us(text[start:]):
                raise ManifestError(f"{document.place}: {TOO_DEEP}") from None
            return [*documents, replace(document, text=text[start:], is_read=False)]
        except ValueError:
            return []
        except DocumentError as error:
            raise ManifestError(f"{document.place}: {error}") from None
        documents.append(replace(document, text=text[start:end], value=value, is_read=is_read))
        start = end
    if documents:
        last = documents[-1]
        documents[-1] = replace(last, text=last.text + text[start:])
    return documents


def _reject_undecoded(place: str, text: str) -> None:
    wrong = _UNDECODED.search(text)
    if wrong:
        raise ManifestError(f"{place}: not UTF-8: invalid byte 0x{ord(wrong[0]) - 0xDC00:02x}")


def _compose(document: Document) -> Node | None:
    """The nodes of a document; raises DocumentError."""
    if document.is_json:
        return compose_json(document.text)
    return compose_yaml(document.text)


def _parse(document: Document) -> Document:
    """Read a document; raises ManifestError, and ValueError for JSON that is not well-formed."""
    _reject_undecoded(document.place, document.text)
    try:
        if document.is_json:
            check_json(json.loads(document.text))
        root = _compose(document)
    except DocumentError as error:
        where = f", line {error.line} of the document" if error.line else ""
        text = " ".join(str(error).split())[:200]
        raise ManifestError(f"{document.place}{where}: {text}") from None
    return replace(document, value=root.value if root else None, root=root)
