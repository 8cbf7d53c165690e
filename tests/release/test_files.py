"""The files of a release: equal bytes for equal content, and what they say."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from asya_injector import __version__

from release import archives, changelog, chart, image, plugin, sbom
from tests.chart.charts import CHART, REPOSITORY, SYSTEM, find_object, helm, run

EPOCH = 1_700_000_000
DIGEST = "sha256:" + "0123456789abcdef" * 4
ABOUT = {"org.opencontainers.image.version": "1.2.3"}
DPKG = """\
Package: libc6
Status: install ok installed
Version: 2.41-12

Package: gone
Status: deinstall ok config-files
Version: 1.0
"""
METADATA = "Metadata-Version: 2.4\nName: PyYAML\nVersion: 6.0\n\nVersion: 0\n"
Files = dict[str, tuple[bytes, int]]  # content and mode by path


def tar(files: Files, *, time: int, user: str, order: int = 1) -> bytes:
    """A tar file. order: -1 reverses its entries."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, (content, mode) in sorted(files.items())[::order]:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(content), mode, time
            entry.uname = entry.gname = user
            entry.pax_headers = {"SCHILY.xattr.security.capability": "x", "comment": user}
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def read(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(entry)
    return stream.read() if stream else b""


BASE: Files = {
    "./var/lib/dpkg/status": (DPKG.encode(), 0o644),
    "./usr/bin/python3": (b"ELF", 0o755),
}
APP: Files = {
    "app/asya_injector/__init__.py": (b"", 0o644),
    "tmp": (b"", 0o777),  # as Docker's RUN leaves it in a layer
    "app/site-packages/pyyaml-6.0.dist-info/METADATA": (METADATA.encode(), 0o644),
}


def base_layer() -> bytes:
    return tar(BASE, time=EPOCH - 10_000, user="base")


def base_digest() -> frozenset[str]:
    return frozenset({f"sha256:{hashlib.sha256(base_layer()).hexdigest()}"})


def save_image(path: Path, *, time: int, user: str, order: int = 1) -> Path:
    """An image as `docker save` writes it."""
    layers = [base_layer(), tar(APP, time=time, user=user, order=order)]
    config = {
        "architecture": "amd64",
        "container": user,
        "created": str(time),
        "config": {"Env": ["PATH=/bin"], "User": "65532", "Image": user, "Labels": None},
        "rootfs": {"diff_ids": [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in layers]},
    }
    names = [f"layer{number}.tar" for number in range(len(layers))]
    listed = [{"Config": "config.json", "Layers": names}]
    members = {name: (layer, 0o644) for name, layer in zip(names, layers, strict=True)}
    members["config.json"] = (json.dumps(config).encode(), 0o644)
    members["manifest.json"] = (json.dumps(listed).encode(), 0o644)
    path.write_bytes(tar(members, time=time, user=user))
    return path


def contents(layout: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(layout)): path.read_bytes()
        for path in layout.rglob("*")
        if path.is_file()
    }


def blob(layout: Path, descriptor: Any) -> bytes:
    """A blob of a layout, checked as a registry checks it."""
    content: bytes = (layout / "blobs/sha256" / descriptor["digest"].partition(":")[2]).read_bytes()
    assert f"sha256:{hashlib.sha256(content).hexdigest()}" == descriptor["digest"]
    assert len(content) == descriptor["size"]
    return content


def test_an_image_depends_on_its_content_and_not_on_the_moment_of_its_build(tmp_path: Path) -> None:
    found = []
    for name, time, order in (("one", EPOCH + 5, 1), ("two", EPOCH - 99, -1)):
        saved = save_image(tmp_path / f"{name}.tar", time=time, user=name, order=order)
        build = image.Build("linux/amd64", saved, base_digest())
        digest = image.write_layout([build], tmp_path / name, epoch=EPOCH, about=ABOUT)
        found.append((digest, contents(tmp_path / name)))
    assert found[0] == found[1]


def test_a_layout_is_an_index_of_valid_images_with_all_that_the_image_does(tmp_path: Path) -> None:
    saved = save_image(tmp_path / "saved.tar", time=EPOCH + 5, user="root")
    builds = [image.Build(f"linux/{each}", saved, base_digest()) for each in ("amd64", "arm64")]
    layout = tmp_path / "layout"
    digest = image.write_layout(builds, layout, epoch=EPOCH, about=ABOUT)
    text = (layout / "index.json").read_bytes()
    assert digest == f"sha256:{hashlib.sha256(text).hexdigest()}"
    index = json.loads(text)
    assert [each["platform"] for each in index["manifests"]] == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm64", "os": "linux"},
    ]
    manifest = json.loads(blob(layout, index["manifests"][0]))
    layers = [gzip.decompress(blob(layout, each)) for each in manifest["layers"]]
    assert json.loads(blob(layout, manifest["config"])) == {
        "architecture": "amd64",
        "os": "linux",
        "created": "2023-11-14T22:13:20Z",
        "config": {"Env": ["PATH=/bin"], "User": "65532", "Labels": ABOUT},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in layers],
        },
    }
    times = (EPOCH - 10_000, EPOCH)
    for layer, files, time in zip(layers, (BASE, APP), times, strict=True):
        with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
            found = {each.name: (read(archive, each), each.mode) for each in archive}
            assert found == files
            for entry in archive:
                kept = {"SCHILY.xattr.security.capability": "x"}
                assert (entry.mtime, entry.uname, entry.pax_headers) == (time, "", kept)


def test_a_published_layer_is_not_changed(tmp_path: Path) -> None:
    saved = save_image(tmp_path / "saved.tar", time=EPOCH + 5, user="root")
    layout = tmp_path / "layout"
    build = image.Build("linux/amd64", saved, base_digest(), published=True)
    image.write_layout([build], layout, epoch=EPOCH, about=ABOUT)
    index = json.loads((layout / "index.json").read_text())
    manifest = json.loads(blob(layout, index["manifests"][0]))
    assert gzip.decompress(blob(layout, manifest["layers"][0])) == base_layer()


def test_the_base_keeps_the_times_that_its_compiled_files_refer_to() -> None:
    old, new = io.BytesIO(tar(BASE, time=EPOCH - 9, user="a")), io.BytesIO()
    archives.normalize(old, new, epoch=EPOCH, exact=False)
    new.seek(0)
    with tarfile.open(fileobj=new) as archive:
        assert {entry.mtime for entry in archive} == {EPOCH - 9}


def test_the_header_of_gzip_names_no_time_and_no_file(tmp_path: Path) -> None:
    with (tmp_path / "name").open("wb") as stream:
        archives.compress(io.BytesIO(b"content"), stream)
    flags, time = (tmp_path / "name").read_bytes()[3:4], (tmp_path / "name").read_bytes()[4:8]
    assert (flags, time) == (b"\0", bytes(4))


def test_a_hard_link_follows_its_file(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("content")
    (tmp_path / "a").hardlink_to(tmp_path / "b")
    old, new = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=old, mode="w") as archive:
        archive.add(tmp_path / "b", "b")
        archive.add(tmp_path / "a", "a")
    old.seek(0)
    archives.normalize(old, new, epoch=EPOCH)
    new.seek(0)
    with tarfile.open(fileobj=new) as archive:
        assert archive.getnames() == ["b", "a"]
        archive.extractall(tmp_path / "out", filter="data")
    assert (tmp_path / "out/a").read_text() == "content"


# --- Chart ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["helm", "helm3"])
def test_the_chart_of_a_release_needs_no_values(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/helm").symlink_to(helm(tool))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    shutil.copytree(CHART, tmp_path / "older")
    for path in (tmp_path / "older").rglob("*"):
        os.utime(path, (EPOCH - 99, EPOCH - 99))
    packed = [
        chart.package(
            source,
            tmp_path / folder,
            image="registry.example.com/team/asya-injector",
            digest=DIGEST,
            annotations={"artifacthub.io/images": "- name: a\n"},
            epoch=EPOCH,
        )
        for source, folder in ((CHART, "one"), (tmp_path / "older", "two"))
    ]
    assert packed[0].name == f"asya-runtime-{__version__}.tgz"
    assert packed[0].read_bytes() == packed[1].read_bytes()
    text = run("template", "a", packed[0], "-n", SYSTEM, "--kube-version", "1.30.0", tool=tool)
    (container,) = find_object(text, "Deployment")["spec"]["template"]["spec"]["containers"]
    name = f"registry.example.com/team/asya-injector:{__version__}@{DIGEST}"
    assert container["image"] == name
    # Pods mount the same image, by digest.
    words = ("-n", SYSTEM, "--kube-version", "1.36.0", "--set", "runtime.delivery=image")
    text = run("template", "a", packed[0], *words, tool=tool)
    (container,) = find_object(text, "Deployment")["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert variables["INJECTOR_RUNTIME_IMAGE"] == variables["INJECTOR_IMAGE"] == name
    about = yaml.safe_load(run("show", "chart", packed[0], tool=tool))
    before = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert about["annotations"] == before["annotations"] | {"artifacthub.io/images": "- name: a\n"}
    assert {**about, "annotations": 0} == {**before, "annotations": 0}


# --- Changelog --------------------------------------------------------------------------------

CHANGELOG = """\
# Changelog

## Unreleased (0.2.0)

### Changed

- **Renamed.** Update:

  | what | new |
  | --- | --- |

- One thing
  in two lines.

### Fixed

- Another: `a`.

## 0.1.0

- First.
"""


def test_the_notes_are_the_section_of_the_version() -> None:
    assert changelog.notes(CHANGELOG, "0.1.0") == "- First.\n"
    notes = changelog.notes(CHANGELOG, "0.2.0")
    assert changelog.changes(notes) == [
        {"kind": "changed", "description": "**Renamed.** Update:"},
        {"kind": "changed", "description": "One thing in two lines."},
        {"kind": "fixed", "description": "Another: `a`."},
    ]
    with pytest.raises(ValueError, match=r"no section for version 0\.3\.0; add `## 0\.3\.0`"):
        changelog.notes(CHANGELOG, "0.3.0")


def test_the_changelog_has_a_section_for_this_version() -> None:
    found = changelog.changes(
        changelog.notes((REPOSITORY / "CHANGELOG.md").read_text(), __version__)
    )
    assert {each["kind"] for each in found} >= {"added", "changed", "fixed"}


# --- Plugin -----------------------------------------------------------------------------------

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: p, annotations: {asya.sh/handler: a.b}}
spec: {containers: [{name: model, image: m, command: [serve]}]}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin, with the packages of this environment."""
    path = tmp_path_factory.mktemp("plugin") / "kubectl-asya"
    write_plugin(path)
    return path


def write_plugin(path: Path) -> None:
    plugin.write_program(
        path,
        package=REPOSITORY / "injector/asya_injector",
        runtime=REPOSITORY / "runtime",
        site_packages=Path(yaml.__file__).parents[1],
        epoch=EPOCH,
    )


def run_plugin(program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the plugin without this environment's packages."""
    return subprocess.run(
        [sys.executable, "-I", "-S", program, *words],
        input=POD, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip


def test_the_plugin_needs_only_python(program: Path) -> None:
    done = run_plugin(program, "inject")
    assert done.stderr.startswith("kubectl asya: 1 injected")
    (_, pod) = sorted(yaml.safe_load_all(done.stdout), key=lambda each: str(each["kind"]))
    assert "asya.sh/injected" in pod["metadata"]["annotations"]
    assert "Usage: kubectl asya" in run_plugin(program, "--help").stdout


def test_a_command_that_the_plugin_lacks_names_where_it_is(program: Path) -> None:
    done = run_plugin(program, "check")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "kubectl-asya: the Python package cryptography is not part of this plugin: install the "
        "complete command line with `pip install asya-injector`, and run `asya-injector check` "
        "(PackageMissing)\n"
    )


def test_an_old_python_is_named_by_the_plugin(program: Path) -> None:
    with zipfile.ZipFile(program) as archive:
        text = archive.read("__main__.py").decode()
    code = "import sys; sys.version_info = (3, 9); exec(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, text], capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith("kubectl-asya: Python 3.11 or newer is required, but python3 is")
    assert "PythonTooOld" in done.stderr


def test_the_plugin_is_reproducible_and_in_its_archive(program: Path, tmp_path: Path) -> None:
    write_plugin(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == program.read_bytes()
    with zipfile.ZipFile(program) as archive:
        assert archive.namelist() == sorted(archive.namelist())
    found = []
    for name in ("one.tar.gz", "two.tar.gz"):
        licenses = {"LICENSE": REPOSITORY / "LICENSE"}
        plugin.write_archive(tmp_path / name, program, licenses, epoch=EPOCH)
        found.append((tmp_path / name).read_bytes())
    assert found[0] == found[1]
    with tarfile.open(tmp_path / "one.tar.gz") as files:
        assert {each.name: each.mode for each in files} == {
            "LICENSE": 0o644,
            "kubectl-asya": 0o755,
        }


def test_the_manifest_for_krew_names_archive_and_program() -> None:
    uri = "https://example.com/kubectl-asya.tar.gz"
    text = plugin.manifest(version="1.2.3", uri=uri, sha256="0" * 64, homepage="https://a.example")
    manifest = yaml.safe_load(text)
    assert manifest["metadata"] == {"name": "asya"}
    assert manifest["spec"]["version"] == "v1.2.3"
    assert manifest["spec"]["platforms"] == [
        {
            "selector": {
                "matchExpressions": [{"key": "os", "operator": "In", "values": ["darwin", "linux"]}]
            },
            "uri": uri,
            "sha256": "0" * 64,
            "files": [{"from": "*", "to": "."}],
            "bin": "kubectl-asya",
        }
    ]


# --- Bills of materials -----------------------------------------------------------------------


def test_a_bill_of_materials_lists_what_the_image_holds(tmp_path: Path) -> None:
    saved = save_image(tmp_path / "saved.tar", time=EPOCH, user="root")
    found = sbom.read_image(saved)
    assert found == sbom.Contents({"PyYAML": "6.0"}, {"libc6": "2.41-12"}, "")
    texts = []
    for name in ("one", "two"):
        subject = sbom.image_subject("registry.example.com/team/asya-injector", "1.2.3", DIGEST)
        parts = sbom.components(found, architecture="amd64")
        sbom.write(tmp_path / name, subject, parts, epoch=EPOCH)
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    bom = json.loads(texts[0])
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    assert bom["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": DIGEST[7:]}]
    assert [each["purl"] for each in bom["components"]] == [
        "pkg:deb/debian/libc6@2.41-12?arch=amd64",
        "pkg:pypi/pyyaml@6.0",
    ]


def test_a_bill_of_materials_lists_all_locked_packages() -> None:
    text = (REPOSITORY / "requirements.txt").read_text()
    found = sbom.read_requirements(text)
    assert {"aiohttp", "kopf", "kubernetes"} <= found.keys()
    assert len(found) == text.count("==") - text.count("; python_version ==")
