"""Writes what follows from the code's tables. Run as `make sync`.

Some files are generated as a whole. In others it is the lines between two marks, in Markdown
`<!-- BEGIN generated: NAME (make sync) -->` and `<!-- END generated -->`, in YAML the same as
comments; the marks may stand in any page.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

from asya_injector import __version__

from tests.generated import tables, values_table

ROOT = Path(__file__).parents[2]
RUNTIME_FILES = ("asya_entrypoint.py", "asya_runtime.py")

_REGION = re.compile(
    r"^(?P<begin> *(?P<mark><!--|#) BEGIN generated: (?P<name>[a-z ]+) \(make sync\)[^\n]*\n)"
    r".*?"
    r"^(?P<end>(?P<indent> *)(?P=mark) END generated[^\n]*\n)",
    re.MULTILINE | re.DOTALL,
)
_SCHEMA_DEFAULTS = re.compile(r'^(?P<indent> *)"defaults": \{\n.*?^(?P=indent)\}', re.M | re.S)
_VERSION = re.compile(r'^((?:appV|v)ersion: "?)[0-9][^"\n]*', re.M)
_RUNTIME_VERSION = re.compile(r'^(VERSION = ")[^"\n]*', re.M)
# The part of an address that changes with the owner of the repository.
_OWNER = re.compile(r"((?:github|raw\.githubusercontent)\.com/)[^/\s]+(/asya-runtime)")
_DOCUMENTED = re.compile(r"((?:asya-injector:|charts/asya-runtime --version )v?)\d[\w.]*\b")


def sync(root: Path = ROOT) -> list[Path]:
    """Write each file that is out of date; returns these."""
    changed = [path for path, text in wanted(root).items() if _read(path) != text]
    for path in changed:
        path.write_bytes(wanted(root)[path].encode())
    return changed


def wanted(root: Path = ROOT) -> dict[Path, str]:
    """What each file with something generated should hold."""
    chart = root / "chart"
    files: dict[Path, str] = {}
    for name in RUNTIME_FILES:
        source = root / "runtime" / name
        text = _RUNTIME_VERSION.sub(rf"\g<1>{__version__}", _read(source))
        files |= {source: text, chart / "files" / name: text}
    files[chart / "templates/_tables.tpl"] = tables.helper_tables()
    about = chart / "Chart.yaml"
    for path in (about, root / "examples/gitops/helm-plugin/plugin.yaml"):
        files[path] = _VERSION.sub(rf"\g<1>{__version__}", _read(path))
    files[about] = _OWNER.sub(rf"\g<1>{_owner(root)}\g<2>", files[about])
    schema = chart / "values.schema.json"
    files[schema] = _with_defaults(_read(schema))
    values = chart / "values.yaml"
    files[values] = _filled(_read(values), {"runtime defaults": tables.chart_defaults})
    texts = {
        "annotations": tables.annotation_table,
        "options": tables.option_table,
        "settings": lambda: tables.setting_table(tables.runtime_settings(root)),
        "values": lambda: values_table.table(files[values]),
    }
    for page in pages(root):
        files[page] = _DOCUMENTED.sub(rf"\g<1>{__version__}", _filled(_read(page), texts))
    return files


def pages(root: Path = ROOT) -> list[Path]:
    """The Markdown pages that may hold something generated."""
    return sorted([
        *root.glob("*.md"),
        *(root / "docs").rglob("*.md"),
        root / "chart/README.md",
        root / "runtime/README.md",
    ])  # fmt: skip


def regions(text: str) -> list[str]:
    """Names of the generated regions in a text."""
    return [match["name"] for match in _REGION.finditer(text)]


def _filled(text: str, texts: dict[str, Callable[[], str]]) -> str:
    """The text with its regions as they should be."""

    def region(match: re.Match[str]) -> str:
        if match["name"] not in texts:
            raise ValueError(
                f"nothing is generated as {match['name']!r}; known are {', '.join(texts)}"
            )
        body = textwrap.indent(texts[match["name"]](), match["indent"])
        blank = "\n" if match["mark"] == "<!--" else ""
        return f"{match['begin']}{blank}{body}{blank}{match['end']}"

    return _REGION.sub(region, text)


def _with_defaults(schema: str) -> str:
    def member(match: re.Match[str]) -> str:
        return textwrap.indent(tables.chart_schema(), match["indent"])

    filled, found = _SCHEMA_DEFAULTS.subn(member, schema)
    if found != 1:
        raise ValueError(f'values.schema.json has {found} members "defaults" in place of one')
    return filled


def _owner(root: Path) -> str:
    """The owner of the repository, by its address in pyproject.toml."""
    (owner,) = re.findall(
        r'^Repository = "https://[^/]+/([^/]+)/', _read(root / "pyproject.toml"), re.M
    )
    return str(owner)


def _read(path: Path) -> str:
    """The text as it is, its line ends included; empty if there is none."""
    return path.read_bytes().decode() if path.exists() else ""


def main() -> None:
    try:
        for path in sync():
            print(f"updated {path.relative_to(ROOT)}")
    except ValueError as error:
        sys.exit(f"make sync: {error}")


if __name__ == "__main__":
    main()
