"""What a release rejects, and where it is pushed."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from asya_injector.runtime_image import RuntimeImage

from release import __main__ as release_main
from release import archives, docker, signing
from release.options import Options, ReleaseError, is_loopback, read_options
from release.summary import write
from tests.chart.charts import CHART

DIGEST = "sha256:" + "0123456789abcdef" * 4
REGISTRY = "registry.example.com/team"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of version 1.2.3 with one commit."""
    root = tmp_path / "checkout"
    package = root / "injector/asya_injector"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""Doc."""\n\n__version__ = "1.2.3"\n')
    urls = '[project.urls]\nRepository = "https://git.example.com/a"\n'
    (root / "pyproject.toml").write_text(f"[project]\n{urls}")
    for words in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "one",
         "--date", "2024-01-01T00:00:00Z"],
    ):  # fmt: skip
        git(root, *words)
    return root


def git(root: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", root, *words], check=True, capture_output=True, text=True,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "GIT_COMMITTER_DATE": "2024-01-02T00:00:00Z"},
    ).stdout  # fmt: skip


def options(root: Path, registry: str = REGISTRY, *, dirty: bool = False) -> Options:
    return read_options(registry, plain_http=False, allow_dirty=dirty, root=root)


@pytest.mark.parametrize(
    ("registry", "message"),
    [
        ("", "REGISTRY: not set; name the registry that nodes pull from"),
        ("https://registry.example.com", "without https:// (RegistryInvalid)"),
        ("registry.example.com/Team", "in lower case"),
        ("registry.example.com/team/", "(RegistryInvalid)"),
        ("registry.example.com/team/../other", "(RegistryInvalid)"),
        ("registry.example.com/-team", "(RegistryInvalid)"),
        ("registry.example.com/a..b", "(RegistryInvalid)"),
        ("registry.example.com/team:1.0", "(RegistryInvalid)"),
        ("registry.example.com/team@sha256:1", "(RegistryInvalid)"),
        ("registry.example.com:port/team", "(RegistryInvalid)"),
        ("registry.example.com:65536/team", "(RegistryInvalid)"),
        ("registry.example.com:0", "(RegistryInvalid)"),
        ("registry..example.com", "(RegistryInvalid)"),
        ("registry-.example.com", "(RegistryInvalid)"),
        ("user@registry.example.com", "(RegistryInvalid)"),
        ("::1", "(RegistryInvalid)"),
        # Clients would take these for images of Docker Hub.
        ("team", "(RegistryInvalid)"),
        ("team/models", "(RegistryInvalid)"),
        ("a b", "(RegistryInvalid)"),
        ("-x", "(RegistryInvalid)"),
    ],
)
def test_a_registry_that_no_client_would_accept_is_rejected(
    registry: str, message: str, checkout: Path
) -> None:
    with pytest.raises(ReleaseError, match=re.escape(message)):
        options(checkout, registry)


@pytest.mark.parametrize(
    "registry",
    [
        "registry.example.com",
        "Registry.Example.com/team",
        "registry.example.com:5000/ml/a__b/c-d.e",
        "registry:5000",
        "localhost/team",
        "10.0.0.1/team",
        "[2001:db8::1]:5000/team",
        "[::1]",
    ],
)
def test_a_registry_may_have_a_port_a_path_or_an_address(registry: str, checkout: Path) -> None:
    image = options(checkout, registry).image
    assert image == f"{registry}/asya-injector"
    # The chart and the injector accept what a release names.
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert re.search(schema["definitions"]["repository"]["pattern"], image)
    assert RuntimeImage(f"{image}:1.2.3@{DIGEST}").reference


def set_version(root: Path, version: str) -> None:
    (root / "injector/asya_injector/__init__.py").write_text(f'__version__ = "{version}"\n')


@pytest.mark.parametrize("version", ["1.0.0-rc.1", "1.0.0+build", "1.0.0rc1", "1.0", "v1.0.0", ""])
def test_a_version_that_has_another_form_for_some_clients_is_rejected(
    version: str, checkout: Path
) -> None:
    set_version(checkout, version)
    with pytest.raises(ReleaseError, match=r"is not a version of a release.*\(VersionInvalid\)"):
        options(checkout, dirty=True)


def test_a_clean_checkout_is_a_release(checkout: Path) -> None:
    git(checkout, "tag", "v1.2.3")
    assert options(checkout) == Options(
        registry=REGISTRY,
        version="1.2.3",
        commit=git(checkout, "rev-parse", "HEAD").strip(),
        epoch=1704153600,
        homepage="https://git.example.com/a",
    )


def test_a_changed_checkout_is_rejected_unless_it_is_allowed(checkout: Path) -> None:
    git(checkout, "config", "status.showUntrackedFiles", "no")
    (checkout / "new").touch()
    with pytest.raises(ReleaseError, match=r"changed or new files: 1, the first is new; commit"):
        options(checkout)
    assert options(checkout, dirty=True).commit.endswith("-dirty")


@pytest.mark.parametrize("tag", ["v1.3.0", "v1.2.3-rc.1"])
def test_a_tag_of_another_version_is_rejected(tag: str, checkout: Path) -> None:
    git(checkout, "tag", tag)
    with pytest.raises(ReleaseError, match=rf"this commit is {tag}, but its version is 1\.2\.3"):
        options(checkout)
    git(checkout, "tag", "v1.2.3")
    assert options(checkout).version == "1.2.3"


def test_without_git_a_release_says_that_it_needs_it(tmp_path: Path, checkout: Path) -> None:
    copy = tmp_path / "copy"
    checkout.rename(copy)
    (copy / ".git").rename(tmp_path / "gone")
    with pytest.raises(ReleaseError, match="a release needs a git checkout"):
        options(copy)


@pytest.mark.parametrize(
    ("registry", "loopback"),
    [
        ("localhost:5000", True),
        ("localhost/team", True),
        ("LOCALHOST:5000", True),
        ("127.0.0.1:5000/a", True),
        ("[::1]:5000", True),
        ("registry.example.com/localhost", False),
        ("localhost.example.com", False),
        ("10.0.0.1:5000", False),
    ],
)
def test_only_a_registry_on_this_machine_is_used_without_tls(registry: str, loopback: bool) -> None:
    assert is_loopback(registry) is loopback


ABOUT = Options(
    registry="localhost:5000/team",
    version="1.2.3",
    commit="abc",
    epoch=0,
    homepage="https://git.example.com/a",
    plain_http=True,
)


def summary(tmp_path: Path, about: Options, key: str, *, pushed: bool = True) -> str:
    for name in ("a-1.2.3.whl", "kubectl-asya-1.2.3.tar.gz"):
        (tmp_path / name).touch()
    signer = signing.Signer(key, tmp_path, about.homepage, about.plain_http)
    digest = "sha256:2" if pushed else ""
    return write(about, signer, image_digest="sha256:1", chart_digest=digest, dist=tmp_path)


def test_the_summary_names_what_a_client_needs_without_tls_and_with_a_key(tmp_path: Path) -> None:
    text = summary(tmp_path, ABOUT, "cosign.key")
    assert (
        "helm install asya-runtime oci://localhost:5000/team/charts/asya-runtime --version 1.2.3 "
        "--plain-http --namespace asya-system --create-namespace --wait\n"
    ) in text
    assert (
        "cosign verify --key cosign.pub --insecure-ignore-tlog --allow-http-registry "
        "localhost:5000/team/asya-injector@sha256:1\n"
    ) in text
    assert "verify-blob --key cosign.pub --insecure-ignore-tlog --bundle" in text


def test_the_summary_of_a_keyless_release_names_the_workflow(tmp_path: Path) -> None:
    about = Options(REGISTRY, "1.2.3", "abc", 0, "https://github.com/owner/asya-runtime")
    text = summary(tmp_path, about, "")
    assert (
        "--certificate-identity-regexp "
        "'^https://github\\.com/owner/asya-runtime/\\.github/workflows/release\\.yml@' "
        "--certificate-oidc-issuer https://token.actions.githubusercontent.com "
        "registry.example.com/team/asya-injector@sha256:1\n"
    ) in text
    assert "plain-http" not in text
    assert "--key" not in text


def test_the_summary_of_a_release_that_was_not_pushed_says_so(tmp_path: Path) -> None:
    text = summary(tmp_path, ABOUT, "", pushed=False)
    assert "Nothing was pushed." in text
    assert "helm install" not in text
    assert "make release REGISTRY=localhost:5000/team PUSH=1" in text


PYTHON = "python:3.13-slim@sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("base", "works", "found"),
    [
        ("asya/python:3.13-12345678", "", "no image registry answers, and the base image"),
        (PYTHON, "", "does not exist for this platform"),
        (PYTHON, "crane", "cannot be pulled"),
        (PYTHON, "crane pull", "install qemu-user-static"),
        (PYTHON, "crane pull run", "python@sha256:1"),
    ],
)
def test_a_platform_that_cannot_be_built_says_why(
    base: str, works: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(*words: str) -> str | None:
        what = "crane" if words[0] == "crane" else words[1]
        return "sha256:1" if what in works.split() else None

    monkeypatch.setattr(docker, "try_run", answer)
    assert found in docker.find_foreign_base("linux/arm64", base)


def install(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a program on PATH, and nothing else of this environment."""
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_program_that_fails_is_named_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "cosign", "echo one >&2\necho 'Error: no key' >&2\nexit 1", monkeypatch)
    with pytest.raises(signing.SigningError, match=r"^cosign sign: Error: no key$"):
        signing.run_cosign("sign", "a")


# --- What is there already


@pytest.mark.parametrize(
    ("key", "calls"),
    [
        ("there.key", ["public-key --key {}/there.key"]),
        ("there.pem", ["public-key --key {}/there.pem"]),
        ("new/new.key", ["generate-key-pair --output-key-prefix {}/new/new",
                         "public-key --key {}/new/new.key"]),
        ("awskms:///alias/releases", ["public-key --key awskms:///alias/releases"]),
    ],
)  # fmt: skip
def test_a_key_is_a_file_or_a_url_and_only_a_missing_file_is_created(
    key: str, calls: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "cosign", f'echo "$*" | tee -a {tmp_path}/calls', monkeypatch)
    for name in ("there.key", "there.pem"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    found, public = signing.find_key(key)
    expected = [each.format(tmp_path) for each in calls]
    assert (tmp_path / "calls").read_text().splitlines() == expected
    assert public == f"{expected[-1]}\n"
    assert found == expected[-1].split()[-1]


def test_a_key_that_cosign_would_create_under_another_name_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(
        signing.SigningError, match=r"^KEY: .*/mine does not exist.*\(KeyInvalid\)$"
    ):
        signing.find_key(str(tmp_path / "mine"))


def test_only_the_files_of_a_release_are_deleted(tmp_path: Path) -> None:
    for name in (
        "asya-runtime-0.1.0.tgz",
        "asya_injector-0.1.0.tar.gz",
        "SHA256SUMS",
        ".gitignore",
    ):
        (tmp_path / name).touch()
    release_main.empty(tmp_path)
    assert list(tmp_path.iterdir()) == []
    release_main.empty(tmp_path / "new/folder")
    assert (tmp_path / "new/folder").is_dir()
    for other in ("notes.txt", ".git", "asya_injector"):
        folder = tmp_path / f"with-{other}"
        (folder / other).mkdir(parents=True)
        (folder / "SHA256SUMS").touch()
        with pytest.raises(ReleaseError, match=rf"the first is {other}; .*\(DistInUse\)"):
            release_main.empty(folder)
        assert (folder / "SHA256SUMS").exists()


@pytest.mark.parametrize(
    ("registry", "image", "chart", "replace", "rejected"),
    [
        (REGISTRY, None, None, False, ""),
        (REGISTRY, "same", "same", False, ""),
        (REGISTRY, "other", None, False, "asya-injector:1.2.3"),
        (REGISTRY, "same", "other", False, "charts/asya-runtime:1.2.3"),
        (REGISTRY, "other", "other", True, ""),
        ("localhost:5000", "other", "other", False, ""),
    ],
)
def test_a_version_in_the_registry_is_not_changed_unless_it_is_asked_for(
    registry: str,
    image: str | None,
    chart: str | None,
    replace: bool,
    rejected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive = tmp_path / "asya-runtime-1.2.3.tgz"
    archive.touch()
    pushed: list[str] = []

    def answer(*words: str) -> str | None:
        if words[1] == "digest":
            return image and f"sha256:{image}"
        found = {"same": archives.sha256(archive)}.get(chart or "", "0")
        return chart and f'{{"layers": [{{"digest": "sha256:{found}"}}]}}'

    def push(*words: str) -> str:
        pushed.append(words[1])
        return "sha256:2"

    monkeypatch.setattr(docker, "try_run", answer)
    monkeypatch.setattr(docker, "run", push)
    install(tmp_path, "helm", "", monkeypatch)
    about = Options(registry, "1.2.3", "abc", 0, "https://git.example.com/a")
    release = release_main.Release(about, tmp_path, image_digest="sha256:same")
    if rejected:
        message = rf"^{registry}/{re.escape(rejected)}: .*\(VersionExists\)$"
        with pytest.raises(ReleaseError, match=message):
            release.push(replace=replace)
        assert pushed == []
    else:
        release.push(replace=replace)
        assert pushed == ["push", "digest"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--registry", "a"], "release: REGISTRY: 'a' is not a host"),
        (["--registry", REGISTRY, "--key", "/dev/null/a.key"],
         "release: /dev/null: File exists; make it available, or choose another path"),
        (["--registry", REGISTRY], "release: cosign: No such file or directory; install it"),
    ],
)  # fmt: skip
def test_a_release_that_cannot_begin_says_why_in_one_line(
    words: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["release", "--dirty", *words])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(SystemExit, match=f"^{re.escape(line)}") as caught:
        release_main.main()
    assert "\n" not in str(caught.value)
