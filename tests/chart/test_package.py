"""The chart archive: reproducible, complete, and free of other files."""

import hashlib
import io
import re
import shutil
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from asya_injector import __version__
from asya_injector.runtime_files import RuntimeFiles

from tests.chart.charts import CHART, REPOSITORY, RUNTIME_FILES, SYSTEM, load_objects, render, run

# Of Artifact Hub.
CATEGORIES = {
    "ai-machine-learning",
    "database",
    "integration-delivery",
    "monitoring-logging",
    "networking",
    "security",
    "storage",
    "streaming-messaging",
    "skip-prediction",
}
CONTENTS = {
    "Chart.yaml",
    "README.md",
    "values.yaml",
    "values.schema.json",
    "checks/one_message.py",
    "monitoring/dashboard.json",
    "monitoring/rules.yaml",
    *(f"files/{name}" for name in RUNTIME_FILES),
}


def package(chart: Path, to: Path) -> bytes:
    """Package the chart as `make package` does."""
    to.mkdir()
    run("package", "--destination", to, chart, SOURCE_DATE_EPOCH="1700000000")
    (archive,) = to.iterdir()
    return archive.read_bytes()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return package(CHART, tmp_path_factory.mktemp("package") / "one")


def test_the_archive_is_reproducible(archive: bytes, tmp_path: Path) -> None:
    again = tmp_path / "chart"
    shutil.copytree(CHART, again, copy_function=shutil.copy)  # with other modification times
    for path in again.rglob("*"):
        path.chmod(0o700)
    assert package(again, tmp_path / "two") == archive


def test_the_archive_contains_only_the_files_of_the_chart(archive: bytes, tmp_path: Path) -> None:
    littered = tmp_path / "chart"
    shutil.copytree(CHART, littered)
    for name in ("x.tgz", ".env", "values.yaml.orig", "files/.swp", "a~"):
        (littered / name).write_text("litter")
    (littered / "files/__pycache__").mkdir()
    (littered / "files/__pycache__/a.pyc").write_text("litter")
    assert package(littered, tmp_path / "two") == archive
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        names = {each.name.removeprefix("asya-runtime/") for each in files.getmembers()}
        assert all(each.isfile() for each in files.getmembers())
    templates = {name for name in names if name.startswith("templates/")}
    assert names - templates == CONTENTS
    assert templates == {
        str(path.relative_to(CHART)) for path in (CHART / "templates").rglob("*.*")
    }
    assert len(archive) < 120_000


def test_the_chart_contains_no_symbolic_link() -> None:
    assert [path for path in CHART.rglob("*") if path.is_symlink()] == []


def test_archive_and_directory_render_the_same(archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "chart.tgz"
    path.write_bytes(archive)
    assert render({}, chart=path) == render({})


def test_all_digests_of_the_runtime_files_agree(archive: bytes) -> None:
    """Of the checkout, of the archive, on the ConfigMap, and on injected pods."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        listing = ""
        for name in RUNTIME_FILES:
            member = files.extractfile(f"asya-runtime/files/{name}")
            assert member
            listing += f"{hashlib.sha256(member.read()).hexdigest()}  {name}\n"
    digest = hashlib.sha256(listing.encode()).hexdigest()
    metadata = load_objects(render({}))["ConfigMap", SYSTEM, "asya-runtime"]["metadata"]
    assert metadata["annotations"]["asya.sh/runtime-sha256"] == digest
    assert RuntimeFiles.load(REPOSITORY / "runtime").hash == digest[:10]


def test_chart_injector_and_documented_commands_have_one_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", __version__)
    assert about["version"] == about["appVersion"] == __version__, "run `make sync`"
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]:
        text = page.read_text()
        for tag in re.findall(r"(?:asya-injector:|asya-runtime --version )(\d[\w.]*)", text):
            assert tag == __version__, f"{page}: run `make sync`"


def test_the_required_kubernetes_version_allows_vendor_suffixes() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"].endswith("-0")


def test_the_metadata_is_what_chart_catalogs_ask_for() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["home"] in about["sources"]
    assert all({"name", "url"} <= each.keys() for each in about["maintainers"])
    icon = REPOSITORY / about["icon"].partition("/main/")[2]
    assert ElementTree.parse(icon).getroot().tag.endswith("}svg")
    annotations = about["annotations"]
    assert all(isinstance(text, str) for text in annotations.values())
    assert annotations["artifacthub.io/category"] in CATEGORIES
    links = yaml.safe_load(annotations["artifacthub.io/links"])
    assert links
    for link in links:
        path = re.sub(r".*/(?:blob|tree)/main/", "", link["url"])
        assert link["name"]
        assert (REPOSITORY / path).exists() or link["url"].endswith("/issues")
