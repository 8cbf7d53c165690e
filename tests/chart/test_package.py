"""The archive: the same bytes of the same sources, and nothing in it that nobody needs."""

import hashlib
import io
import re
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml
from asya_injector.runtime_files import RuntimeFiles
from charts import CHART, REPOSITORY, RUNTIME_FILES, SYSTEM, objects, render, run

CONTENTS = {
    "Chart.yaml",
    "README.md",
    "values.yaml",
    "values.schema.json",
    "checks/one_message.py",
    *(f"files/{name}" for name in RUNTIME_FILES),
}


def package(chart: Path, to: Path) -> bytes:
    """As `make package` does it."""
    to.mkdir()
    run("package", "--destination", to, chart, SOURCE_DATE_EPOCH="1700000000")
    (archive,) = to.iterdir()
    return archive.read_bytes()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return package(CHART, tmp_path_factory.mktemp("package") / "one")


def test_equal_sources_give_equal_bytes(archive: bytes, tmp_path: Path) -> None:
    again = tmp_path / "chart"
    shutil.copytree(CHART, again, copy_function=shutil.copy)  # with other times
    for path in again.rglob("*"):
        path.chmod(0o700)
    assert package(again, tmp_path / "two") == archive


def test_it_holds_what_is_needed_and_no_more(archive: bytes, tmp_path: Path) -> None:
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
    assert len(archive) < 100_000


def test_no_part_of_the_chart_is_a_link() -> None:
    assert [path for path in CHART.rglob("*") if path.is_symlink()] == []


def test_the_archive_renders_as_the_directory_does(archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "chart.tgz"
    path.write_bytes(archive)
    assert render({}, chart=path) == render({})


def test_all_names_of_the_runtimes_text_agree(archive: bytes) -> None:
    """In the checkout, in the archive, on the ConfigMap, and what the injector puts on pods."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        listing = ""
        for name in RUNTIME_FILES:
            member = files.extractfile(f"asya-runtime/files/{name}")
            assert member
            listing += f"{hashlib.sha256(member.read()).hexdigest()}  {name}\n"
    digest = hashlib.sha256(listing.encode()).hexdigest()
    metadata = objects(render({}))["ConfigMap", SYSTEM, "asya-runtime"]["metadata"]
    assert metadata["annotations"]["asya.sh/runtime-sha256"] == digest
    assert RuntimeFiles.load(REPOSITORY / "runtime").hash == digest[:10]


def test_one_version_has_one_name() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    module = (REPOSITORY / "injector/asya_injector/__init__.py").read_text()
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"])
    assert about["kubeVersion"].endswith("-0")
    assert f'__version__ = "{about["appVersion"]}"' in module
    # A tag that somebody copies from here is the one that the chart asks for.
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]:
        for tag in re.findall(r"asya-injector:(\d[\w.]*)", page.read_text()):
            assert tag == about["appVersion"], page
