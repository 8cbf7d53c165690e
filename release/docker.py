"""Docker builds the image for each platform that it can, and says why it cannot for the others."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from release.image import Build
from release.options import REPOSITORY, ReleaseError

PLATFORMS = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
_SCRIPTS = REPOSITORY / "e2e/cluster"


def build_all(folder: Path, left_out: dict[str, str]) -> Iterator[Build]:
    """Build and save the image for each platform into a folder.

    left_out: gets the reason for each platform that cannot be built.
    """
    native = run("docker", "version", "--format", "{{.Server.Os}}/{{.Server.Arch}}")
    base = run(str(_SCRIPTS / "python-image.sh"))
    for platform, machine in sorted(PLATFORMS.items(), key=lambda each: each[0] != native):
        if platform == native:
            name, own_base = run(str(_SCRIPTS / "injector-image.sh"), CLUSTER="none"), base
        else:
            found = find_foreign_base(platform, base)
            if not found.startswith("python@"):
                left_out[platform] = found
                continue
            own_base = found
            name = run(
                str(_SCRIPTS / "injector-image.sh"),
                CLUSTER="none", PLATFORM=platform, MACHINE=machine, PYTHON_IMAGE=found,
            )  # fmt: skip
        saved = folder / f"{machine}.tar"
        run("docker", "save", "--output", str(saved), name)
        layers = json.loads(
            run("docker", "image", "inspect", "--format", "{{json .RootFS.Layers}}", own_base)
        )
        yield Build(platform, saved, frozenset(layers), published="@" in own_base)


def find_foreign_base(platform: str, base: str) -> str:
    """The base image for a platform other than this machine's, as python@digest, or the reason why
    there is none.
    """
    if "@" not in base:
        return (
            f"no image registry answers, and the base image {base} is built for this machine only"
        )
    digest = try_run("crane", "digest", "--platform", platform, base)
    if not digest:
        return f"the base image {base} does not exist for this platform"
    foreign = f"python@{digest}"
    if try_run("docker", "pull", "--quiet", "--platform", platform, foreign) is None:
        return f"the base image {foreign} cannot be pulled"
    words = ["--rm", "--platform", platform, "--network", "none", foreign]
    if try_run("docker", "run", *words, "python3", "-c", "") is None:
        return (
            "this machine does not run programs of that platform; on Debian and Ubuntu, install "
            "qemu-user-static"
        )
    return foreign


def run(*words: str, **environment: str) -> str:
    """Run a program and return its output; its error output is shown. Raises ReleaseError."""
    done = subprocess.run(
        words, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | environment
    )
    if done.returncode:
        raise ReleaseError(f"{Path(words[0]).name}: ended with {done.returncode}; see above")
    return done.stdout.strip()


def try_run(*words: str) -> str | None:
    """The output of a program; None if it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return None if done.returncode else done.stdout.strip()
