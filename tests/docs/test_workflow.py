"""Public CI runs the make targets that everybody runs, and third-party code only by commit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
MAKEFILE = (REPOSITORY / "Makefile").read_text()
each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
each_file = pytest.mark.parametrize(
    "path",
    [*WORKFLOWS, *sorted(GITHUB.glob("actions/*/action.yml"))],
    ids=lambda path: str(path.relative_to(GITHUB)),
)


def load(path: Path) -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(path.read_text())
    return loaded


def jobs(name: str) -> dict[str, Any]:
    found: dict[str, Any] = load(GITHUB / "workflows" / name)["jobs"]
    return found


def targets(job: dict[str, Any]) -> list[str]:
    """The make targets that a job runs."""
    commands = [step.get("run", "") for step in job["steps"]]
    return [word for each in commands for word in re.findall(r"^make (\S+)$", each, re.MULTILINE)]


@each_workflow
def test_each_make_target_exists(path: Path) -> None:
    known = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
    used = [target for job in jobs(path.name).values() for target in targets(job)]
    assert used
    assert [target for target in used if target not in known] == []


@each_file
def test_each_action_is_pinned_by_commit_with_its_version_in_a_comment(path: Path) -> None:
    uses = re.findall(r"\buses: *(.*)$", path.read_text(), re.MULTILINE)
    assert uses
    for each in uses:
        if each.startswith("./"):
            assert (REPOSITORY / each / "action.yml").is_file()
        else:
            assert re.fullmatch(r"[\w-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each), each


def test_one_commit_of_an_action_is_used_everywhere() -> None:
    text = "".join(path.read_text() for path in GITHUB.rglob("*.yml"))
    pins = set(re.findall(r"\buses: *([\w./-]+)@(.*)$", text, re.MULTILINE))
    assert len(pins) == len({name for name, _ in pins})


@each_workflow
def test_it_may_read_the_repository_and_nothing_else(path: Path) -> None:
    loaded = load(path)
    assert loaded["permissions"] == {"contents": "read"}
    writes = [name for name, job in loaded["jobs"].items() if "permissions" in job]
    assert writes == (["publish"] if path.name == "release.yml" else [])
    assert "secrets." not in path.read_text()
    assert "pull_request_target" not in path.read_text()


def test_only_a_tag_publishes_after_the_same_tests_as_on_a_pull_request() -> None:
    loaded = load(GITHUB / "workflows" / "release.yml")
    assert loaded[True] == {  # YAML 1.1: on
        "push": {"tags": ["v[0-9]+.[0-9]+.[0-9]+"]},
        "pull_request": None,
        "workflow_dispatch": None,
    }
    assert {*loaded["jobs"]} == {"dry-run", "publish"}
    assert targets(loaded["jobs"]["dry-run"]) == ["e2e-release"]
    publish = loaded["jobs"]["publish"]
    assert (publish["needs"], publish["if"]) == ("dry-run", "github.event_name == 'push'")
    assert publish["environment"] == "release"
    assert publish["permissions"] == {
        "contents": "write",
        "packages": "write",
        "id-token": "write",
        "attestations": "write",
    }
    (setup,) = [step for step in publish["steps"] if step.get("uses") == "./.github/actions/setup"]
    assert setup["with"] == {"cache": "false"}
    commands = "".join(step.get("run", "") for step in publish["steps"])
    assert 'make release REGISTRY="${REGISTRY,,}" PUSH=1 KEYLESS=1' in commands
    assert "OWNER" not in commands


@each_workflow
def test_each_checkout_drops_its_credentials(path: Path) -> None:
    for job in jobs(path.name).values():
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


@each_workflow
def test_each_job_has_a_time_limit_and_a_fixed_runner(path: Path) -> None:
    for name, job in jobs(path.name).items():
        assert job["timeout-minutes"] <= 120, name
        assert re.fullmatch(r"ubuntu-\d\d\.\d\d", job["runs-on"]), name


def test_ci_runs_all_parts_of_make_check() -> None:
    found = re.search(r"^check:.*\n\t@for part in ([a-z0-9 -]+);", MAKEFILE, re.MULTILINE)
    assert found
    parts = found[1].replace("test", "unit chart-test").split()
    used = {target for job in jobs("ci.yml").values() for target in targets(job)}
    assert used == {*parts, "package"}
    assert (REPOSITORY / ".ci" / "run").read_text().endswith("exec make check\n")


def test_unit_and_chart_tests_are_all_of_the_tests() -> None:
    recipes = dict(re.findall(r"^([a-z0-9-]+):.*\n\t@\S+/pytest ([^-]*)", MAKEFILE, re.MULTILINE))
    assert recipes["test"].split() == ["tests"]
    assert re.search(r"^unit:.*\n\t@\S+/pytest tests --ignore tests/chart -n", MAKEFILE, re.M)
    assert recipes["chart-test"].split() == ["tests/chart"]


def test_the_cluster_tests_run_on_each_kubernetes_release_that_is_known() -> None:
    versions = (REPOSITORY / "e2e" / "cluster" / "versions.env").read_text()
    known = re.findall(r"^(\d\.\d+) kindest/node:", versions, re.MULTILINE)
    job = jobs("ci.yml")["cluster"]
    assert job["strategy"]["matrix"]["kubernetes"] == known
    (step,) = [step for step in job["steps"] if step.get("run") == "make e2e"]
    assert step["env"] == {
        "KUBERNETES_VERSION": "${{ matrix.kubernetes }}",
        "SOAK_MINUTES": "5",
    }


def test_the_unit_tests_run_on_the_oldest_python_that_is_supported() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text()
    oldest = re.search(r'^requires-python = ">=(3\.\d+)"$', project, re.MULTILINE)
    assert oldest
    pythons = jobs("ci.yml")["unit"]["strategy"]["matrix"]["python"]
    assert pythons[0] == oldest[1]
    assert all(f'"Programming Language :: Python :: {each}"' in project for each in pythons)


def test_the_last_job_waits_for_all_others() -> None:
    *others, last = jobs("ci.yml")
    assert jobs("ci.yml")[last]["needs"] == others
    assert jobs("ci.yml")[last]["if"] == "always()"


def test_the_long_targets_run_by_schedule_or_label() -> None:
    loaded = load(GITHUB / "workflows" / "long.yml")
    assert {*loaded[True]} == {"schedule", "pull_request", "workflow_dispatch"}  # YAML 1.1: on
    assert [targets(job) for job in loaded["jobs"].values()] == [
        ["fuzz"],
        ["test-newest-pythons", "e2e-newest-pythons"],
        ["soak"],
        ["demo-queue", "e2e-queue"],
        ["e2e-cert-manager"],
        ["e2e-keda"],
    ]
    for job in loaded["jobs"].values():
        assert job["if"] == (
            "github.event_name != 'pull_request' || "
            "contains(github.event.pull_request.labels.*.name, 'long-tests')"
        )


def test_the_git_hooks_run_programs_of_make_lint() -> None:
    hooks = [
        hook
        for source in load(REPOSITORY / ".pre-commit-config.yaml")["repos"]
        for hook in source["hooks"]
        if source["repo"] == "local"  # nothing is downloaded
    ]
    assert {hook["language"] for hook in hooks} == {"system"}
    lint = MAKEFILE[MAKEFILE.index("\nlint:") :].split("\n\n")[0]
    programs = {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks}
    assert programs == {"ruff", "mypy", "codespell", "shellcheck"}
    assert all(f"$(bin)/{program}" in lint for program in programs)


def test_dependabot_watches_every_image_that_a_dockerfile_names() -> None:
    (docker,) = [
        update
        for update in load(GITHUB / "dependabot.yml")["updates"]
        if update["package-ecosystem"] == "docker"
    ]
    folders = ("injector", "e2e", "examples")
    named = {
        f"/{path.parent.relative_to(REPOSITORY)}"
        for folder in folders
        for path in (REPOSITORY / folder).rglob("Dockerfile")
        if re.search(r"^(FROM|ARG \w+=)\s*[\w./-]+:", path.read_text(), re.MULTILINE)
    }
    assert {*docker["directories"]} == named
