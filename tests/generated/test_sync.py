"""Each generated text is current, and `make sync` brings it there from any state."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.generated import tables
from tests.generated.sync import ROOT, pages, regions, sync, wanted


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that `make sync` reads and writes, as it leaves them."""
    for path in [*wanted(), *(ROOT / "runtime").glob("*.py"), ROOT / "pyproject.toml"]:
        there = tmp_path / path.relative_to(ROOT)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, there)
    sync(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", wanted(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_with_generated_text_is_current(path: Path) -> None:
    assert path.exists(), "run `make sync`"
    assert path.read_bytes().decode() == wanted()[path], (
        f"{path.relative_to(ROOT)}: run `make sync`. To change a generated text, edit its source: "
        f"{tables.RUNTIME_TABLE}, {tables.ANNOTATION_TABLE}, chart/values.yaml, the programs in "
        "injector/asya_injector/startup/programs.py, or __version__ in "
        "injector/asya_injector/__init__.py"
    )


def test_each_table_is_on_one_page() -> None:
    found = Counter(name for page in pages() for name in regions(page.read_text()))
    assert found == {"annotations": 1, "options": 1, "settings": 1, "values": 1}, (
        "each needs `<!-- BEGIN generated: NAME (make sync) -->` and `<!-- END generated -->` in "
        "one page"
    )


def changed(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in sync(root)}


def test_a_current_checkout_is_not_touched(copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in wanted(copy)}
    assert changed(copy) == set()
    assert {path: path.stat().st_mtime_ns for path in before} == before


# By the file that somebody changed: what stood there, what stands there now.
EDITS = [
    ("chart/files/asya_runtime.py", r"\A", "# Edited in the copy.\r\n"),
    ("chart/templates/_tables.tpl", "4096", "4097"),
    ("chart/values.yaml", "chunk-size: 4096", "chunk-size: 4097"),
    ("chart/values.schema.json", '"maximum": 16777216', '"maximum": 1'),
    ("chart/Chart.yaml", r"\nversion: .*", "\nversion: 9.9.9"),
    ("chart/Chart.yaml", "appVersion: .*", 'appVersion: "9.9.9-rc.1"'),
    ("chart/Chart.yaml", "OWNER/asya-runtime/main/docs/icon", "other/asya-runtime/main/docs/icon"),
    ("chart/README.md", "`4096`", "`4097`"),
    ("docs/annotations.md", "`4096`", "`4097`"),
    ("runtime/README.md", "`4096`", "`4097`"),
    ("README.md", r"charts/asya-runtime --version [0-9.]+", "charts/asya-runtime --version 9.9.9"),
]


@pytest.mark.parametrize(("file", "old", "new"), EDITS, ids=lambda word: word[:30])
def test_an_edit_of_generated_text_is_reverted(file: str, old: str, new: str, copy: Path) -> None:
    path = copy / file
    current = path.read_bytes()
    edited = re.sub(old, new, current.decode(), count=1)
    assert edited != current.decode()
    path.write_bytes(edited.encode())
    assert changed(copy) == {file}
    assert path.read_bytes() == current
    assert changed(copy) == set()


def test_what_is_written_by_hand_stays(copy: Path) -> None:
    values = copy / "chart/values.yaml"
    values.write_text(values.read_text().replace("logLevel: info", "logLevel: debug"))
    page = copy / "docs/annotations.md"
    page.write_text(f"By hand.\n{page.read_text()}By hand.\n")
    assert changed(copy) == {"chart/README.md"}
    assert '| `injector.logLevel` | `"debug"` |' in (copy / "chart/README.md").read_text()


def test_a_file_that_was_lost_is_written_again(copy: Path) -> None:
    (copy / "chart/templates/_tables.tpl").unlink()
    assert changed(copy) == {"chart/templates/_tables.tpl"}


def test_a_region_of_an_unknown_name_is_an_error(copy: Path) -> None:
    page = copy / "docs/annotations.md"
    page.write_text(page.read_text().replace("generated: annotations", "generated: annotation"))
    with pytest.raises(ValueError, match="nothing is generated as 'annotation'; known are annot"):
        sync(copy)


def test_a_schema_without_its_defaults_is_an_error(copy: Path) -> None:
    schema = copy / "chart/values.schema.json"
    schema.write_text(schema.read_text().replace('"defaults": {', '"default": {'))
    with pytest.raises(ValueError, match='has 0 members "defaults" in place of one'):
        sync(copy)


# --- The two tables and what they need of each other


def number(text: str) -> object:
    raise ValueError(f"must be a whole number from 1 to {len(text)}")


def test_a_setting_of_the_runtime_needs_an_annotation_or_a_description() -> None:
    ours = tables.runtime_settings(ROOT)
    with pytest.raises(ValueError, match=r"ASYA_NEW has no description: .*annotations?.*\.py"):
        tables.setting_table([*ours, ("ASYA_NEW", "1", number)])


def test_an_annotation_needs_a_setting_of_the_runtime() -> None:
    *most, last = tables.runtime_settings(ROOT)
    with pytest.raises(ValueError, match=rf"{last[0]}: the runtime has no such .*asya_runtime\.py"):
        tables.setting_table(most)


def test_the_rows_of_the_runtimes_table_say_what_is_valid() -> None:
    text = tables.setting_table(tables.runtime_settings(ROOT))
    assert "| `ASYA_HANDLER` | required | module.path.function or module.Class.method |" in text
    assert "| `ASYA_CHUNK_SIZE` | `4096` | 1 to 16777216 |" in text


def test_defaults_of_the_chart_have_the_type_that_the_schema_asks_for() -> None:
    defaults = yaml.safe_load(tables.chart_defaults())
    schema = json.loads(f"{{{tables.chart_schema()}}}")["defaults"]["properties"]
    kinds = {"string": str, "boolean": bool, "integer": int, "number": int}
    assert list(defaults) == list(schema)
    for name, value in defaults.items():
        types = schema[name]["type"]
        allowed = [types] if isinstance(types, str) else types
        assert type(value) in [kinds[each] for each in allowed], name
