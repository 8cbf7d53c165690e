"""The checkout as a page's reader sees it, in a folder where the page may write."""

import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.docs.pages import REPOSITORY


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in ("runtime", "chart", "examples", "e2e"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    return tmp_path


@pytest.fixture
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment with `asya-injector` on its PATH, and without what other tests or CI settings
    could say to the runtime.
    """
    program = tmp_path_factory.mktemp("bin") / "asya-injector"
    injector = shlex.quote(str(REPOSITORY / "injector"))
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={injector} exec {sys.executable} -m asya_injector "$@"\n'
    )
    program.chmod(0o755)
    kept = {name: text for name, text in os.environ.items() if not name.startswith("ASYA_")}
    return kept | {"PATH": f"{program.parent}:{kept['PATH']}"}
