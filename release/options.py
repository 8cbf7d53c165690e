"""What a release is made of: version, commit, registry, names."""

from __future__ import annotations

import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
# As in references of images; see also `_is_host`.
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = rf"{_LABEL}(\.{_LABEL})*|\[[0-9a-fA-F:]+\]"
_NAME = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_REGISTRY = re.compile(rf"(?P<host>{_HOST})(:(?P<port>[0-9]{{1,5}}))?(?P<path>(/{_NAME})*)")
_LOOPBACK = re.compile(r"localhost|127\.[0-9.]+|\[::1\]", re.IGNORECASE)
# Image tags have no `+`, and Python packages write pre-releases in another form.
_VERSION = re.compile(r"\d+\.\d+\.\d+")


class ReleaseError(Exception):
    """The release cannot be built or pushed; the text says why and how to fix it."""


@dataclass(frozen=True)
class Options:
    """One release.

    registry: host and path. epoch: the time of the commit, which all files get. plain_http: the
    registry has no TLS. homepage: address of the repository.
    """

    registry: str
    version: str
    commit: str
    epoch: int
    homepage: str
    plain_http: bool = False

    @property
    def image(self) -> str:
        return f"{self.registry}/asya-injector"

    @property
    def charts(self) -> str:
        return f"{self.registry}/charts"

    @property
    def chart(self) -> str:
        return f"{self.charts}/asya-runtime"

    @property
    def about(self) -> dict[str, str]:
        """Annotations of the image."""
        prefix = "org.opencontainers.image."
        return {
            f"{prefix}title": "asya-injector",
            f"{prefix}description": "Admission webhook of asya-runtime",
            f"{prefix}licenses": "Apache-2.0",
            f"{prefix}revision": self.commit,
            f"{prefix}source": self.homepage,
            f"{prefix}version": self.version,
        }


def is_loopback(registry: str) -> bool:
    """Whether a registry is on this machine, where clients do not expect TLS."""
    host = _REGISTRY.fullmatch(registry)
    return bool(host and _LOOPBACK.fullmatch(host["host"]))


def _is_host(registry: re.Match[str]) -> bool:
    """Whether clients take the first part for a host: `team/app` is an image of Docker Hub."""
    host, port = registry["host"].lower(), registry["port"]
    return bool(set(".[").intersection(host) or port or host == "localhost")


def read_options(
    registry: str, *, plain_http: bool, allow_dirty: bool, root: Path = REPOSITORY
) -> Options:
    """The release of the checkout; raises ReleaseError."""
    if not registry:
        raise ReleaseError(
            "REGISTRY: not set; name the registry that nodes pull from, such as "
            "REGISTRY=registry.example.com/team (RegistryMissing)"
        )
    found = _REGISTRY.fullmatch(registry)
    if not found or not _is_host(found) or int(found["port"] or 1) not in range(1, 65536):
        raise ReleaseError(
            f"REGISTRY: {registry!r} is not a host with an optional path in lower case; write it "
            "like registry.example.com/team, without https:// (RegistryInvalid)"
        )
    version = _read_version(root)
    if not _VERSION.fullmatch(version):
        raise ReleaseError(
            f"version: {version!r} is not a version of a release; set __version__ in "
            "injector/asya_injector/__init__.py to a version such as 1.2.3, and run `make sync` "
            "(VersionInvalid)"
        )
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    # Git can be configured to leave out new files.
    changed = _git(root, "status", "--porcelain", "--untracked-files=normal").splitlines()
    if changed and not allow_dirty:
        raise ReleaseError(
            f"checkout: changed or new files: {len(changed)}, the first is {changed[0][3:]}; "
            "commit them, or set DIRTY=1 for a release that nobody can reproduce (CheckoutDirty)"
        )
    tags = _git(root, "tag", "--points-at", "HEAD").split()
    versions = [tag for tag in tags if re.match(r"v\d+\.\d+\.\d+", tag)]
    if versions and f"v{version}" not in versions:
        raise ReleaseError(
            f"tag: this commit is {versions[0]}, but its version is {version}; set __version__ in "
            "injector/asya_injector/__init__.py and run `make sync` (VersionMismatch)"
        )
    return Options(
        registry=registry,
        version=version,
        commit=_git(root, "rev-parse", "HEAD").strip() + ("-dirty" if changed else ""),
        epoch=int(_git(root, "log", "-1", "--format=%ct")),
        homepage=project["urls"]["Repository"],
        plain_http=plain_http or is_loopback(registry),
    )


def _read_version(root: Path) -> str:
    text = (root / "injector/asya_injector/__init__.py").read_text()
    (version,) = re.findall(r'^__version__ = "(.*)"$', text, re.MULTILINE)
    return str(version)


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", root, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(
            f"git {words[0]}: {done.stderr.strip()}; a release needs a git checkout (GitFailed)"
        )
    return done.stdout
