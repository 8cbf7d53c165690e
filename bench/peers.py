"""The peers' own virtual environment: what is measured against is no dependency of the project."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACE = ROOT / ".tools" / "bench"
REQUIREMENTS = ROOT / "requirements-bench.txt"


def install(python: str) -> Path:
    """The interpreter of an environment with the pinned peers, made if it is not there."""
    stamp = PLACE / "installed"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest() + f" {python}"
    interpreter = PLACE / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == wanted and interpreter.exists():
        return interpreter
    print("installing the peers into .tools/bench (usually 15 s)", flush=True)
    uv = os.environ.get("UV") or shutil.which("uv") or str(ROOT / ".tools" / "uv" / "bin" / "uv")
    quiet = (uv, "--quiet", "--no-python-downloads")
    make = (*quiet, "venv", "--clear", "--python", python, str(PLACE))
    fill = (
        *quiet,
        "pip",
        "sync",
        "--python",
        str(interpreter),
        "--require-hashes",
        "--compile-bytecode",
    )
    for command in (make, (*fill, str(REQUIREMENTS))):
        subprocess.run(command, check=True, timeout=300)
    stamp.write_text(wanted)
    return interpreter
