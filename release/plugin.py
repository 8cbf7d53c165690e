"""kubectl-asya: one executable file for `kubectl asya`, and its manifest for krew.

It holds the command line and the pure Python packages for `inject`, `uninject` and `explain`. The
Kubernetes client is not part of it, because that needs compiled packages.
"""

from __future__ import annotations

import datetime as dt
import io
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from release import archives

NAME = "asya"
PROGRAM = f"kubectl-{NAME}"
_PACKAGES = ("click", "yaml")
# Runs on old Pythons too, to say that they are too old.
_MAIN = """\
import sys

if sys.version_info < (3, 11):
    sys.exit(
        "kubectl-asya: Python 3.11 or newer is required, but python3 is %d.%d: install it, or run "
        "this file with a newer one (PythonTooOld)" % sys.version_info[:2]
    )

from asya_injector.cli.main import main

try:
    main(name="kubectl asya")
except ModuleNotFoundError as error:
    sys.exit(
        "kubectl-asya: the Python package {0} is not part of this plugin: install the complete "
        "command line with `pip install asya-injector`, and run `asya-injector {1}` "
        "(PackageMissing)".format(error.name, sys.argv[1])
    )
"""


def write_program(
    path: Path, *, package: Path, runtime: Path, site_packages: Path, epoch: int
) -> None:
    """Write the executable file.

    package: folder `asya_injector`. site_packages: folder with the locked Python packages.
    """
    members = {"__main__.py": _MAIN.encode()}
    for name, folder in [
        ("asya_injector", package),
        *((name, site_packages / name) for name in _PACKAGES),
    ]:
        for file in _python_files(folder):
            members[f"{name}/{file.relative_to(folder).as_posix()}"] = file.read_bytes()
    for file in runtime.glob("asya_*.py"):
        members[f"asya_injector/data/{file.name}"] = file.read_bytes()
    time = dt.datetime.fromtimestamp(epoch, dt.UTC).timetuple()[:6]
    with path.open("wb") as stream:
        stream.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in sorted(members.items()):
                entry = zipfile.ZipInfo(name, time)
                entry.external_attr = 0o644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, content)
    path.chmod(0o755)


def write_archive(path: Path, program: Path, licenses: dict[str, Path], *, epoch: int) -> None:
    """Write the archive that krew downloads: the program, and licenses by their names in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, PROGRAM)
        copy.write_bytes(program.read_bytes())
        copy.chmod(0o755)
        for name, file in licenses.items():
            Path(folder, name).write_bytes(file.read_bytes())
        plain = io.BytesIO()
        archives.write_tar(Path(folder), plain, epoch=epoch)
    plain.seek(0)
    with path.open("wb") as stream:
        archives.compress(plain, stream)


def manifest(*, version: str, uri: str, sha256: str, homepage: str) -> str:
    """The plugin manifest for krew."""
    return yaml.safe_dump(
        {
            "apiVersion": "krew.googlecontainertools.github.com/v1alpha2",
            "kind": "Plugin",
            "metadata": {"name": NAME},
            "spec": {
                "version": f"v{version}",
                "homepage": homepage,
                "shortDescription": "Explain and inject actors of asya-runtime",
                "description": (
                    "Shows what asya-runtime would change in manifests, and why, and injects the "
                    "runtime into them without an admission webhook."
                ),
                "caveats": "This plugin needs python3 3.11 or newer.",
                "platforms": [
                    {
                        "selector": {
                            "matchExpressions": [
                                {"key": "os", "operator": "In", "values": ["darwin", "linux"]}
                            ]
                        },
                        "uri": uri,
                        "sha256": sha256,
                        "files": [{"from": "*", "to": "."}],
                        "bin": PROGRAM,
                    }
                ],
            },
        },
        sort_keys=False,
        width=100,
    )


def _python_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.suffix in {".py", ".typed"} and "__pycache__" not in path.parts:
            yield path
