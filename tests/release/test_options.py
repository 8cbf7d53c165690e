"""What a release rejects, and where it is pushed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from release import docker, signing
from release.options import Options, ReleaseError, is_loopback, read_options
from release.summary import write

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
        ("registry.example.com:port/team", "(RegistryInvalid)"),
        ("a b", "(RegistryInvalid)"),
        ("-x", "(RegistryInvalid)"),
    ],
)
def test_a_registry_that_no_client_would_accept_is_rejected(
    registry: str, message: str, checkout: Path
) -> None:
    with pytest.raises(ReleaseError, match=re.escape(message)):
        options(checkout, registry)


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
    (checkout / "new").touch()
    with pytest.raises(ReleaseError, match=r"1 files are changed or new, the first is new; commit"):
        options(checkout)
    assert options(checkout, dirty=True).commit.endswith("-dirty")


def test_a_tag_of_another_version_is_rejected(checkout: Path) -> None:
    git(checkout, "tag", "v1.3.0")
    with pytest.raises(ReleaseError, match=r"this commit is v1\.3\.0, but its version is 1\.2\.3"):
        options(checkout)


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


def summary(tmp_path: Path, about: Options, key: Path | None, *, pushed: bool = True) -> str:
    for name in ("a-1.2.3.whl", "kubectl-asya-1.2.3.tar.gz"):
        (tmp_path / name).touch()
    signer = signing.Signer(key, tmp_path, about.homepage, about.plain_http)
    digest = "sha256:2" if pushed else ""
    return write(about, signer, image_digest="sha256:1", chart_digest=digest, dist=tmp_path)


def test_the_summary_names_what_a_client_needs_without_tls_and_with_a_key(tmp_path: Path) -> None:
    text = summary(tmp_path, ABOUT, tmp_path / "cosign.key")
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
    text = summary(tmp_path, about, None)
    assert (
        "--certificate-identity-regexp "
        "'^https://github\\.com/owner/asya-runtime/\\.github/workflows/release\\.yml@' "
        "--certificate-oidc-issuer https://token.actions.githubusercontent.com "
        "registry.example.com/team/asya-injector@sha256:1\n"
    ) in text
    assert "plain-http" not in text
    assert "--key" not in text


def test_the_summary_of_a_release_that_was_not_pushed_says_so(tmp_path: Path) -> None:
    text = summary(tmp_path, ABOUT, None, pushed=False)
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


def test_a_program_that_fails_is_named_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "cosign"
    program.write_text("#!/bin/sh\necho one >&2\necho 'Error: no key' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(signing.SigningError, match=r"^cosign sign: Error: no key$"):
        signing.run_cosign("sign", "a")
