"""Manifests as files contain them: read into documents, and written with minimal changes.

An unchanged document is written byte for byte. A changed YAML document keeps its comments, order
and style (see `yaml_edit`); a changed JSON document keeps its order and indentation.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MantissaNoDotYAML1_1Warning, MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.resolver import VersionedResolver
from ruamel.yaml.tag import Tag

from asya_injector.manifests.yaml_edit import edit_yaml, render_block

SUFFIXES = (".yaml", ".yml", ".json")
_SPACE = "\ufeff \t\r\n"
_LINE_END = re.compile(r"[ \t]*\r?\n?")
# No text in YAML can contain this at the start of a line, not even a block of literal text.
_MARKER = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_COMMENTS_AND_DIRECTIVES = re.compile(r"(\ufeff?[ \t]*([#%][^\n]*)?\r?(\n|\Z))*")
_COMMENTS_AT_END = re.compile(
    r"^(#[^\n]*\n|[ \t\r]*\n)*#[^\n]*(\n|\Z)(#[^\n]*\n|[ \t\r]*\n)*\Z", re.MULTILINE
)
_NUMBER_FROM_DOT = re.compile(r"[-+]?\.[0-9]+([eE][-+]?[0-9]+)?")


class ManifestError(Exception):
    """A file cannot be read: one line that says where and why."""


@dataclass(frozen=True)
class Document:
    """A document of a file; `number` counts from 1.

    text: as it was read, with the `---` in front of it. value: as Kubernetes reads it; None if it
    is empty.
    """

    source: str
    number: int
    text: str
    value: Any
    is_json: bool = False

    @property
    def has_marker(self) -> bool:
        """Whether it starts with `---`."""
        return not self.is_json and _MARKER.search(self.text) is not None

    @property
    def place(self) -> str:
        """The document in a message."""
        return f"{self.source}:{self.number}"


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


def read_documents(source: str, text: str) -> list[Document]:
    """Read all documents of a text; raises ManifestError."""
    if text.lstrip(_SPACE)[:1] in ("{", "["):
        documents = _read_json(source, text)
        if documents:
            return documents
    return [
        Document(source, number, chunk, _parse_yaml(chunk, f"{source}:{number}"))
        for number, chunk in enumerate(_split_yaml(text), 1)
    ]


def edit_document(document: Document, value: Any) -> Document | None:
    """Change a document to have this value; None if it cannot keep its comments and style."""
    if value == document.value:
        return document
    if document.is_json:
        return render_document(value, like=document)
    text = edit_yaml(document.text, document.value, value)
    try:
        if _parse_yaml(text, document.place) == value:
            return replace(document, text=text, value=value)
    except ManifestError:
        pass
    # An anchor or a merge key has the same text for two places, and only one of them changes.
    return None


def render_document(value: Any, *, like: Document) -> Document:
    """Write a value in the format of another document, with a `---` if that one has it."""
    text = (
        _render_json(value, like.text)
        if like.is_json
        else "---\n" * like.has_marker + render_block(value)
    )
    return replace(like, text=text, value=value)


def join_documents(documents: Sequence[Document]) -> str:
    """The text of a file with these documents; YAML, unless all of them are JSON."""
    is_yaml = not all(document.is_json for document in documents)
    stream = ""
    for document in documents:
        if stream and not stream.endswith("\n"):
            stream += "\n"
        if stream.strip() and is_yaml and not _MARKER.search(document.text):
            stream += "---\n"
        stream += document.text
    return stream


def remove_documents(pairs: Iterable[tuple[Document, Document | None]]) -> list[Document]:
    """Return the second of each pair; None removes the document.

    A document that was added by `render_document` and `join_documents` is removed without a trace.
    Comments behind a removed document are kept, because they may belong to the next one.
    """
    kept: list[Document] = []
    is_marker_added = False
    for document, output in pairs:
        if output:
            text = output.text.removeprefix("---\n") if is_marker_added else output.text
            kept.append(replace(output, text=text))
            is_marker_added = False
            continue
        comments = None if document.is_json else _COMMENTS_AT_END.search(document.text)
        if comments:
            kept.append(replace(document, text=comments[0], value=None))
        is_marker_added = not (document.is_json or document.has_marker or comments)
    return kept


def _split_yaml(text: str) -> list[str]:
    starts = [match.start() for match in _MARKER.finditer(text)]
    # Comments and directives before the first marker belong to the first document.
    first = starts[0] if starts else len(text)
    if not starts or not _COMMENTS_AND_DIRECTIVES.fullmatch(text, 0, first):
        starts.insert(0, 0)
    starts[0] = 0
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def _read_json(source: str, text: str) -> list[Document]:
    """Read a stream of JSON; nothing if it is something else, such as a YAML flow mapping."""
    documents: list[Document] = []
    decoder, start = json.JSONDecoder(), 0
    while rest := text[start:].lstrip(_SPACE):
        try:
            value, end = decoder.raw_decode(text, len(text) - len(rest))
        except ValueError:
            return []
        line_end = _LINE_END.match(text, end)
        end = line_end.end() if line_end else end
        documents.append(Document(source, len(documents) + 1, text[start:end], value, is_json=True))
        start = end
    return documents


def _render_json(value: Any, like: str) -> str:
    """Write JSON with the indentation and the spaces of another text."""
    indent = re.search(r"[{\[]\r?\n([ \t]+)", like)
    if indent:
        return json.dumps(value, ensure_ascii=False, indent=indent[1]) + "\n"
    separators = (", ", ": ") if '": ' in like else (",", ":")
    return json.dumps(value, ensure_ascii=False, separators=separators) + "\n"


class _Constructor(SafeConstructor):
    """YAML values as Kubernetes reads them: dates are strings."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


class _Resolver(VersionedResolver):
    """Types of plain words as Kubernetes reads them.

    As in YAML 1.1, `no` is false and 0444 is octal; but `y`, `n` and 1:20 are strings, and numbers
    may start with the dot.
    """

    @property
    def processing_version(self) -> Any:
        return (1, 1)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0]:
            if value in ("y", "Y", "n", "N") or ":" in value:
                return self.DEFAULT_SCALAR_TAG
            if _NUMBER_FROM_DOT.fullmatch(value):
                return Tag(suffix="tag:yaml.org,2002:float")
        return super().resolve(kind, value, implicit)


def _parse_yaml(text: str, place: str) -> Any:
    loader = YAML(typ="safe", pure=True)
    loader.Constructor = _Constructor
    loader.Resolver = _Resolver
    try:
        with warnings.catch_warnings():
            # Kubernetes reads 1e3 as a number; ruamel.yaml asks for a dot in it.
            warnings.simplefilter("ignore", MantissaNoDotYAML1_1Warning)
            value = loader.load(text)
        json.dumps(value)  # fails for values that contain themselves
        return value
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1} of the document" if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise ManifestError(f"{place}{where}: {problem[:200]}") from None
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise ManifestError(f"{place}: {problem[:200]}") from None
