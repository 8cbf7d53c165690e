"""Every third-party package that the code imports is declared, and every declared one is locked."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def normalize(requirement: str) -> str:
    """The normalized name of a distribution in a requirement such as `pytest_asyncio>=1.0`."""
    return re.sub(r"[-_.]+", "-", re.split(r"[<>=~!;\[ ]", requirement, maxsplit=1)[0]).lower()


RUNTIME = {normalize(each) for each in PROJECT["project"]["dependencies"]}
DEVELOPMENT = RUNTIME | {normalize(each) for each in PROJECT["dependency-groups"]["dev"]}
BENCH, BENCH_MODELS, SIDECAR, MODEL = (
    {
        normalize(line)
        for line in (REPOSITORY / f"{name}.in").read_text().splitlines()
        if line and not line.startswith(("#", "-r "))
    }
    for name in (
        "bench/requirements",
        "bench/requirements-models",
        "examples/queue/sidecar/requirements",
        "examples/queue/model/requirements",
    )
)


def sources(folder: str) -> list[Path]:
    return sorted((REPOSITORY / folder).rglob("*.py"))


# The bench's packages are not installed here; those whose modules have another name.
NOT_INSTALLED = {"grpc": "grpcio", "sklearn": "scikit-learn"}
# Modules of this repository are named by their file or folder.
OWN = {"asya_injector"} | {
    name
    for folder in ("bench", "e2e", "examples", "release", "runtime", "tests")
    for path in sources(folder)
    for name in (path.stem, path.parent.name)
}


def imported(path: Path) -> Iterator[str]:
    """Top-level names of the third-party modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names = [node.module]
        for name in names:
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names and top not in OWN:
                yield top


@pytest.mark.parametrize(
    ("folder", "declared"),
    [
        ("injector", RUNTIME),
        ("runtime", {"orjson"}),  # optional: the runtime uses it where the image has it
        ("tests", DEVELOPMENT),
        ("e2e", DEVELOPMENT),
        ("release", DEVELOPMENT),
        ("examples", DEVELOPMENT | MODEL),
        ("examples/queue/sidecar", SIDECAR),
        ("examples/queue/model", MODEL),
        ("bench", DEVELOPMENT | BENCH | BENCH_MODELS),
    ],
)
def test_each_import_is_declared(folder: str, declared: set[str]) -> None:
    distributions = packages_distributions()
    missing = {
        f"{path.relative_to(REPOSITORY)}: {module}"
        for path in sources(folder)
        for module in imported(path)
        if not {
            normalize(name)
            for name in distributions.get(module, [NOT_INSTALLED.get(module, module)])
        }
        & declared
    }
    assert sorted(missing) == []


@pytest.mark.parametrize(
    ("lock", "declared"),
    [
        ("requirements.txt", RUNTIME),
        ("requirements-dev.txt", DEVELOPMENT),
        ("requirements-bench.txt", BENCH),
        ("requirements-bench-models.txt", BENCH_MODELS),
        ("examples/queue/sidecar/requirements.txt", SIDECAR),
        ("examples/queue/model/requirements.txt", MODEL),
    ],
)
def test_each_declared_package_is_locked(lock: str, declared: set[str]) -> None:
    text = (REPOSITORY / lock).read_text()
    pinned = {normalize(name) for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)}
    assert sorted(declared - pinned) == [], "make lock"


@pytest.mark.parametrize(
    "lock",
    [
        *(
            f"requirements{part}.txt"
            for part in ("", "-bench", "-bench-models", "-dev", "-go", "-uv")
        ),
        *(f"examples/queue/{part}/requirements.txt" for part in ("sidecar", "model")),
    ],
)
def test_a_lock_pins_by_hash_and_names_no_index(lock: str) -> None:
    text = (REPOSITORY / lock).read_text()
    requirements = re.split(r"\n(?=[A-Za-z0-9])", text)[1:]
    assert [each for each in requirements if "--hash=sha256:" not in each] == []
    assert re.findall(r"\S+://\S+|--\S*index\S*|--find-links", text) == []


def test_the_address_of_the_repository_is_in_one_place() -> None:
    urls = PROJECT["project"]["urls"]
    home = urls["Repository"]
    assert [url for url in urls.values() if not url.startswith(home)] == []
    folders = ("chart", "docs", "e2e", "examples", "injector", "release", "runtime", ".github")
    generated = REPOSITORY / "chart/Chart.yaml"
    elsewhere = [
        path
        for path in [
            *REPOSITORY.glob("*.md"),
            *(path for folder in folders for path in (REPOSITORY / folder).rglob("*")),
        ]
        if path.is_file()
        and path.parent.name != "__pycache__"  # files come and go there
        and home.encode() in path.read_bytes()
    ]
    assert elsewhere == [generated]  # by `make sync`
