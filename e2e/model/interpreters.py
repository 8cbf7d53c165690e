"""Creates two interpreters outside of PATH, each with a module that only it can import.

/opt/venv is a virtual environment. /opt/conda is relocatable, like conda's: it finds its library by
its own location, and does not use the system's packages.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import venv
from pathlib import Path

MODULE = '''"""A module of {name} only."""

import sys


def where(message):
    return {{"name": "{name}", "prefix": sys.prefix}}
'''


def make_venv(directory: Path) -> Path:
    venv.create(directory, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return directory / "lib" / version / "site-packages"


def make_conda(directory: Path) -> Path:
    library = Path(sysconfig.get_path("stdlib"))
    copy = directory / "lib" / library.name
    shutil.copytree(library, copy, ignore=shutil.ignore_patterns("test", "__pycache__"))
    (directory / "bin").mkdir()
    shutil.copy2(Path(sys.executable).resolve(), directory / "bin" / "python3")
    return copy


if __name__ == "__main__":
    for name, make in (("venv", make_venv), ("conda", make_conda)):
        packages = make(Path("/opt") / name)
        (packages / f"only_{name}.py").write_text(MODULE.format(name=name))
