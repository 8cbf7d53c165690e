"""CONTRIBUTING.md and the architecture page name what exists; the example setting is real."""

from __future__ import annotations

import re

from tests.docs.pages import DOCS, REPOSITORY

CONTRIBUTING = (REPOSITORY / "CONTRIBUTING.md").read_text()
ARCHITECTURE = (DOCS / "architecture.md").read_text()
INJECTOR = REPOSITORY / "injector" / "asya_injector"
PACKAGES = re.findall(r"^\| (?:`(\w+)`|\(top level\)) \| [^|]* \| ([^|]*) \|$", CONTRIBUTING, re.M)


def test_the_packages_and_modules_are_all_that_exist() -> None:
    documented = {
        f"{package}/{module}".strip("/")
        for package, modules in PACKAGES
        for module in re.findall(r"`(\w+)`", modules)
    }
    found = {str(path.relative_to(INJECTOR))[:-3] for path in INJECTOR.rglob("*.py")}
    assert documented == {name for name in found if not name.endswith(("__init__", "__main__"))}


def test_each_file_that_is_named_exists() -> None:
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", CONTRIBUTING + ARCHITECTURE)
    named = [name for name in named if not name.startswith("asya.sh/")]
    roots = (REPOSITORY, INJECTOR, REPOSITORY / "tests")
    missing = [
        name
        for name in named
        if not any((root / name).exists() or (root / f"{name}.py").exists() for root in roots)
    ]
    assert missing == []


def test_the_example_setting_is_in_the_code() -> None:
    sources = [*INJECTOR.rglob("*.py"), REPOSITORY / "runtime" / "asya_runtime.py"]
    lines = {line.strip() for path in sources for line in path.read_text().splitlines()}
    section = CONTRIBUTING.partition("## Add a setting")[2].partition("\n## ")[0]
    examples = re.findall(r"^   ```python\n(.*?)^   ```", section, re.M | re.S)
    assert len(examples) == 2
    assert [
        line
        for text in examples
        for line in text.split("\n")
        if line.strip() and line.strip() not in lines
    ] == []
