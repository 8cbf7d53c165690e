"""Manifests as files hold them: read into documents, written back with all that was not changed.

A document that nobody changed is written byte for byte. A YAML document that was changed keeps its
comments, order and style (see `edits`); a JSON document keeps its order and indentation.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
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
# No text in YAML can hold this at the start of a line, not even a block of literal text.
_MARKER = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_PREAMBLE = re.compile(r"(\ufeff?[ \t]*([#%][^\n]*)?\r?(\n|\Z))*")

# Comments and blank lines at the end of a document.
_BEHIND = re.compile(
    r"^(#[^\n]*\n|[ \t\r]*\n)*#[^\n]*(\n|\Z)(#[^\n]*\n|[ \t\r]*\n)*\Z", re.MULTILINE
)


class ManifestError(Exception):
    """Something cannot be read: one line that says where and what."""


@dataclass(frozen=True)
class Document:
    """One document of a file, `number` counted from 1.

    text: as it was read, with the `---` in front of it. value: what Kubernetes reads in it, None
    where it is empty.
    """

    source: str
    number: int
    text: str
    value: Any
    is_json: bool = False

    @property
    def is_marked(self) -> bool:
        """Whether a `---` opens it."""
        return not self.is_json and _MARKER.search(self.text) is not None

    @property
    def place(self) -> str:
        """The document as an error names it."""
        return f"{self.source}:{self.number}"


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files that are meant: of a directory, all manifests in it and below, by name.

    Raises ManifestError for a directory without any.
    """
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        found = sorted(each for each in path.rglob("*") if each.suffix in SUFFIXES)
        if not any(each.is_file() for each in found):
            raise ManifestError(
                f"{path}: holds no file named {', '.join('*' + s for s in SUFFIXES)}"
            )
        yield from (each for each in found if each.is_file())


def read_documents(source: str, text: str) -> list[Document]:
    """All documents of a text; raises ManifestError."""
    if text.lstrip("\ufeff \t\r\n")[:1] in ("{", "["):
        documents = _read_json(source, text)
        if documents:
            return documents
    return [
        Document(source, number, chunk, _parse(chunk, f"{source}:{number}"))
        for number, chunk in enumerate(_split(text), 1)
    ]


def rewrite(document: Document, value: Any) -> tuple[str, bool]:
    """The document's text saying `value`, and whether its comments and style could be kept."""
    if document.is_json:
        return _json_like(document.text, value), True
    text = edit_yaml(document.text, document.value, value)
    try:
        if _parse(text, document.place) == value:
            return text, True
    except ManifestError:
        pass
    # Anchors and merged keys say one thing in two places, and only one of them was to change.
    return "---\n" * document.is_marked + render_block(value), False


def join_texts(texts: Iterable[tuple[str, bool]]) -> str:
    """One stream of the texts of documents, each with whether it is JSON."""
    pieces = list(texts)
    is_yaml = not all(is_json for _, is_json in pieces)
    stream = ""
    for text, _ in pieces:
        if stream and not stream.endswith("\n"):
            stream += "\n"
        if stream.strip() and is_yaml and not _MARKER.search(text):
            stream += "---\n"
        stream += text
    return stream


def render_document(value: Any, *, before: Document) -> str:
    """A new document to stand before another, in its format, and with a `---` if that has one."""
    if before.is_json:
        return _json_like(before.text, value)
    return "---\n" * before.is_marked + render_block(value)


def drop_documents(documents: Sequence[tuple[Document, str | None]]) -> list[tuple[str, bool]]:
    """The texts that are not None, as `written` takes them; what `rendered` added leaves no trace.

    Comments between a document that goes and the next one stay.
    """
    texts: list[tuple[str, bool]] = []
    opens = False
    for document, text in documents:
        if text is None:
            behind = _BEHIND.search(document.text)
            kept = behind[0] if behind and not document.is_json else ""
            opens = not document.is_json and not document.is_marked and not kept
            if kept:
                texts.append((kept, False))
            continue
        texts.append((text.removeprefix("---\n") if opens else text, document.is_json))
        opens = False
    return texts


def _split(text: str) -> list[str]:
    starts = [match.start() for match in _MARKER.finditer(text)]
    # What precedes the first marker is a document, or comments and directives of the first one.
    first = starts[0] if starts else len(text)
    if not starts or not _PREAMBLE.fullmatch(text, 0, first):
        starts.insert(0, 0)
    starts[0] = 0
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def _read_json(source: str, text: str) -> list[Document] | None:
    """The values of a stream of JSON; None where it is none (a YAML flow mapping, say)."""
    documents: list[Document] = []
    decoder, place = json.JSONDecoder(), 0
    while text[place:].strip("\ufeff \t\r\n"):
        start = place
        while text[start] in "\ufeff \t\r\n":
            start += 1
        try:
            value, end = decoder.raw_decode(text, start)
        except ValueError:
            return None
        end += len(re.match(r"[ \t]*\r?\n?", text[end:])[0])  # type: ignore[index]
        documents.append(Document(source, len(documents) + 1, text[place:end], value, is_json=True))
        place = end
    return documents


def _json_like(text: str, value: Any) -> str:
    indented = re.search(r"[{\[]\r?\n([ \t]+)", text)
    spaced = indented or re.search(r'": ', text)
    return (
        json.dumps(
            value,
            ensure_ascii=False,
            indent=indented[1] if indented else None,
            separators=(",", ": ") if indented else (", ", ": ") if spaced else (",", ":"),
        )
        + "\n"
    )


_FROM_DOT = re.compile(r"[-+]?\.[0-9]+([eE][-+]?[0-9]+)?")


class _Constructor(SafeConstructor):
    """YAML as Kubernetes reads it: what looks like a date is a text."""


_Constructor.add_constructor("tag:yaml.org,2002:timestamp", SafeConstructor.construct_yaml_str)


class _Resolver(VersionedResolver):
    """Plain words as Kubernetes takes them: YAML 1.1 (`no` is false, 0444 octal), but `y`, `n` and
    1:20 are texts, and numbers may start with the dot.
    """

    @property
    def processing_version(self) -> Any:
        return (1, 1)

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is ScalarNode and implicit[0] and (value in ("y", "Y", "n", "N") or ":" in value):
            return self.DEFAULT_SCALAR_TAG
        if kind is ScalarNode and implicit[0] and _FROM_DOT.fullmatch(value):
            return Tag(suffix="tag:yaml.org,2002:float")
        return super().resolve(kind, value, implicit)


def _parse(text: str, place: str) -> Any:
    loader = YAML(typ="safe", pure=True)
    loader.Constructor = _Constructor
    loader.Resolver = _Resolver
    try:
        with warnings.catch_warnings():
            # Kubernetes reads 1e3 as a number; ruamel.yaml asks for a dot in it.
            warnings.simplefilter("ignore", MantissaNoDotYAML1_1Warning)
            value = loader.load(text)
        json.dumps(value)  # what refers to itself is no manifest
        return value
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1} of the document" if mark else ""
        problem = " ".join(str(error.problem or error.context).split())
        raise ManifestError(f"{place}{where}: {problem[:200]}") from None
    except (YAMLError, ValueError, TypeError, RecursionError) as error:
        problem = " ".join(str(error).split()) or type(error).__name__
        raise ManifestError(f"{place}: {problem[:200]}") from None
