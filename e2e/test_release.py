"""A release in a real registry: the commands of its summary install and verify it.

`make e2e-release` starts the registry. The release is built once for all tests, from the checkout
as it is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from asya_injector import __version__

from e2e.harness import RELEASE, REPOSITORY, SYSTEM, Cluster
from e2e.releases import Release, find_fixtures, stream

pytestmark = [
    pytest.mark.alone,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not os.environ.get("REGISTRY"), reason="`make e2e-release` starts one"),
]
IN_REGISTRY = "--key cosign.pub --insecure-ignore-tlog --allow-http-registry"
UV = os.environ.get("UV", "uv")
MODEL = """\
apiVersion: v1
kind: Pod
metadata: {name: model, annotations: {asya.sh/handler: my_app.handler.predict}}
spec: {containers: [{name: model, image: model, command: [serve]}]}
"""


def run(
    *words: str | Path,
    check: bool = True,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program; with `check`, a failure is an AssertionError with its output."""
    done = subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, check=False, timeout=800,
        env=os.environ | (env or {}),
    )  # fmt: skip
    if check and done.returncode:
        raise AssertionError(f"{words} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def build(registry: str, dist: Path, *words: str, env: Mapping[str, str] | None = None) -> str:
    """Make a release of the checkout; returns its summary."""
    options = ["--registry", registry, "--dist", str(dist), "--dirty", *words]
    return run(sys.executable, "-m", "release", *options, cwd=REPOSITORY, env=env).stdout


@dataclass
class Released:
    """A release that was pushed. dist: its files. commands: of its summary, in its order."""

    registry: str
    dist: Path
    key: Path
    commands: list[str]

    def starting(self, *words: str) -> list[str]:
        """The commands that start with these words."""
        beginning = " ".join(words) + " "
        return [command for command in self.commands if command.startswith(beginning)]

    def shell(self, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of the summary in the folder of the files."""
        return run("bash", "-euc", command, cwd=self.dist, check=check)

    def reference(self, name: str) -> str:
        """A verified name@digest, by a part of its name."""
        (found,) = [each.split()[-1] for each in self.starting("cosign verify") if name in each]
        return found


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """A release, pushed to the registry and signed with a new key."""
    folder = tmp_path_factory.mktemp("release")
    registry = f"{os.environ['REGISTRY']}/team"
    key = folder / "cosign.key"
    text = build(registry, folder / "dist", "--push", "--key", str(key))
    blocks = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    return Released(registry, folder / "dist", key, commands)


@pytest.fixture
def installed(free: Cluster, released: Released) -> Iterator[Cluster]:
    """The cluster with the release, installed by the one line of the summary."""
    (command,) = released.starting("helm", "install")
    assert "--set" not in command
    released.shell(command)
    yield free
    free.uninstall()


def test_one_line_of_the_summary_installs_a_release_that_passes_helm_test(
    installed: Cluster, released: Released
) -> None:
    (command,) = released.starting("helm", "test")
    assert "Succeeded" in released.shell(command).stdout
    reference = released.reference("/asya-injector@")
    name, _, digest = reference.partition("@")
    for pod in installed.injector_pods():
        (container,) = pod.spec.containers
        assert re.fullmatch(rf"{name}:[\d.]+@{digest}", container.image)
        assert pod.status.container_statuses[0].image_id.endswith(f"@{digest}")
    history = json.loads(run("helm", "list", "-n", SYSTEM, "-o", "json").stdout)
    assert [each["name"] for each in history] == [RELEASE]


@pytest.mark.parametrize("version", find_fixtures())
def test_the_release_upgrades_an_earlier_one_and_goes_back(
    version: str, free: Cluster, released: Released, namespace: str
) -> None:
    before = Release(free)
    before.change("install", chart=find_fixtures()[version])
    (command,) = released.starting("helm", "install")
    upgrade = command.replace("install", "upgrade", 1).replace(" --create-namespace", "")
    with stream(free, namespace) as requested:
        released.shell(f"{upgrade} --reset-values")
        free.settle()
        assert "Succeeded" in before.helm("test", RELEASE)
        before.helm("rollback", RELEASE, "1", "--wait", "--timeout", "5m")
        free.settle()
    assert (requested.rejected, requested.plain) == ([], 0)
    assert requested.injected > 20
    free.uninstall()


def test_the_summary_verifies_everything_that_was_signed(released: Released) -> None:
    commands = [*released.starting("cosign"), *released.starting("sha256sum")]
    assert [command.split()[1] for command in commands] == [
        "verify", "verify", "verify-attestation", "verify-blob", "--check",
    ]  # fmt: skip
    printed = [released.shell(command) for command in commands]
    assert "Verified OK" in printed[3].stderr
    attested = json.loads(printed[2].stdout.splitlines()[0])
    assert attested["payloadType"] == "application/vnd.in-toto+json"
    listed = {line.split()[1] for line in (released.dist / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in released.dist.iterdir()} - {
        "SHA256SUMS",
        "SHA256SUMS.sigstore.json",
    }


# Each yields a command that verifies something, and then changes it.
Change = Callable[[Released, Path], Iterator[str]]


def change_image(released: Released, folder: Path) -> Iterator[str]:
    """Push the image with another label to the same tag."""
    reference = released.reference("/asya-injector@")
    tag = f"{reference.partition('@')[0]}:{__version__}"
    yield f"cosign verify {IN_REGISTRY} {tag}"
    run("crane", "mutate", "--insecure", reference, "--label", "a=b", "--tag", tag)


def change_chart(released: Released, folder: Path) -> Iterator[str]:
    """Push the chart with another default to the same version."""
    yield f"cosign verify {IN_REGISTRY} {released.registry}/charts/asya-runtime:{__version__}"
    (archive,) = released.dist.glob("asya-runtime-*.tgz")
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="data")
    values = folder / "asya-runtime/values.yaml"
    values.write_text(values.read_text().replace("replicas: 2", "replicas: 1"))
    run("helm", "package", folder / "asya-runtime", "--destination", folder)
    (changed,) = folder.glob("*.tgz")
    run("helm", "push", "--plain-http", changed, f"oci://{released.registry}/charts")


def change_checksums(released: Released, folder: Path) -> Iterator[str]:
    """Change a checksum."""
    shutil.copytree(released.dist, folder, dirs_exist_ok=True)
    (command,) = released.starting("cosign", "verify-blob")
    yield f"cd {folder} && {command}"
    change_byte(folder / "SHA256SUMS", 0)


def change_file(released: Released, folder: Path) -> Iterator[str]:
    """Change a byte of the wheel."""
    shutil.copytree(released.dist, folder, dirs_exist_ok=True)
    (command,) = released.starting("sha256sum")
    yield f"cd {folder} && {command}"
    (wheel,) = folder.glob("*.whl")
    change_byte(wheel, 1000)


def change_key(released: Released, folder: Path) -> Iterator[str]:
    """Verify the right image with another key."""
    shutil.copy(released.dist / "cosign.pub", folder)
    command, *_ = released.starting("cosign", "verify")
    yield f"cd {folder} && {command}"
    (folder / "cosign.pub").unlink()
    run("cosign", "generate-key-pair", cwd=folder, env={"COSIGN_PASSWORD": ""})


def change_byte(path: Path, where: int) -> None:
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)


@pytest.fixture
def restored(released: Released) -> Iterator[None]:
    """Restores the tags of image and chart, whatever the test pushes."""
    yield
    for name in ("/asya-injector@", "/asya-runtime@"):
        run("crane", "tag", "--insecure", released.reference(name), __version__)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_image, "no signatures found"),
        (change_chart, "no signatures found"),
        (change_checksums, "invalid signature"),
        (change_file, "did NOT match"),
        (change_key, "no matching|invalid signature|failed to verify"),
    ],
    ids=lambda each: getattr(each, "__name__", "").replace("_", " "),
)
def test_verification_refuses_what_was_changed(
    change: Change, message: str, released: Released, tmp_path: Path
) -> None:
    steps = change(released, tmp_path)
    command = next(steps)
    released.shell(command)
    assert next(steps, None) is None
    done = released.shell(command, check=False)
    assert done.returncode != 0
    assert re.search(message, done.stdout + done.stderr), done.stdout + done.stderr


def test_equal_sources_give_equal_files(released: Released, tmp_path: Path) -> None:
    """Built again in all layers, under another umask."""
    again = tmp_path / "again"
    old = os.umask(0o077)
    try:
        build(released.registry, again, "--key", str(released.key), env={"NO_CACHE": "1"})
    finally:
        os.umask(old)

    def sums(dist: Path) -> dict[str, str]:
        lines = (dist / "SHA256SUMS").read_text().splitlines()
        found = {name: digest for digest, name in (line.split("  ") for line in lines)}
        del found["INSTALL.md"]  # it says whether the release was pushed
        return found

    assert sums(again) == sums(released.dist)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text(MODEL)
    return path


def test_the_wheel_runs_in_an_empty_environment(
    released: Released, tmp_path: Path, model: Path
) -> None:
    run(UV, "venv", "--quiet", "--python", sys.executable, tmp_path / "venv")
    (wheel,) = released.dist.glob("*.whl")
    run(UV, "pip", "install", "--quiet", "--python", tmp_path / "venv/bin/python", wheel)
    program = tmp_path / "venv/bin/asya-injector"
    done = run(program, "explain", "-o", "json", "-f", model, env={"PYTHONPATH": ""})
    assert "my_app.handler.predict" in done.stdout


def test_the_plugin_is_a_command_of_kubectl(
    released: Released, tmp_path: Path, model: Path
) -> None:
    (archive,) = released.dist.glob("kubectl-asya-*.tar.gz")
    manifest = yaml.safe_load((released.dist / "asya.yaml").read_text())
    (platform,) = manifest["spec"]["platforms"]
    assert platform["uri"].endswith(f"/v{__version__}/{archive.name}")
    with tarfile.open(archive) as files:
        files.extractall(tmp_path / "bin", filter="data")
    assert (tmp_path / "bin" / platform["bin"]).is_file()
    # Nothing of this environment: only a Python, as `python3`.
    (tmp_path / "bin/python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    (tmp_path / "bin/python3").chmod(0o755)
    kubectl = str(shutil.which("kubectl"))
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "PYTHONPATH": ""}
    done = run(kubectl, "asya", "explain", "-o", "json", "-f", model, env=environment)
    expected = run(
        sys.executable, "-m", "asya_injector", "explain", "-o", "json", "-f", model,
        env={"PYTHONPATH": str(REPOSITORY / "injector")},
    )  # fmt: skip
    assert json.loads(done.stdout) == json.loads(expected.stdout)
    missing = run(kubectl, "asya", "check", check=False, env=environment)
    assert missing.returncode == 1
    assert "pip install asya-injector" in missing.stderr
    assert "(PackageMissing)" in missing.stderr
