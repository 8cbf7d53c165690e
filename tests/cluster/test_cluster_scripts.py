"""Errors, choices and output of the cluster scripts, with fakes for the programs they call."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "e2e" / "cluster"

# An engine without containers, and tools that are new enough.
DOCKER = 'case "$1 $2" in "version "*) echo 26.1 ;; *) exit 1 ;; esac'
# An engine that has a node of that name, with a mount and a Kubernetes version.
DOCKER_WITH_NODE = """case "$*" in
  version*) echo 26.1 ;;
  *State.Running*) echo true ;;
  *Mounts*) echo {mount} ;;
  *"cat /kind/version") echo v1.34.4 ;;
esac"""
TOOLS = {"kind": "echo kind v0.33.0 go1.27 linux/amd64", "helm": "echo v4.3.1", "docker": DOCKER}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a script in a copy of the folder, with fake programs (shell texts by name)."""
    folder = tmp_path / "checkout" / "e2e" / "cluster"
    shutil.copytree(SCRIPTS, folder)
    programs = tmp_path / "programs"
    programs.mkdir()

    def run_script(
        *command: str, programs_: dict[str, str] | None = None, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        for name, text in (programs_ or {}).items():
            file = programs / name
            file.write_text(f"#!/bin/bash\n{text}\n")
            file.chmod(0o755)
        return subprocess.run(
            command,
            check=False,
            cwd=folder,
            env={"PATH": f"{programs}:{os.defpath}", "HOME": str(tmp_path), **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run_script


def outcome(result: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return result.returncode, result.stdout, result.stderr


SUPPORTED = "supported: 1.30, 1.34, 1.37"
ENGINE = "install Docker Engine 24 or newer, start it, and give this user access"


@pytest.mark.parametrize(
    ("command", "env", "programs", "message"),
    [
        pytest.param(
            ["./up.sh"],
            {"KUBERNETES_VERSION": "1.2"},
            {},
            f"Kubernetes 1.2 is not supported; {SUPPORTED}",
            id="a Kubernetes version that is not listed",
        ),
        pytest.param(
            ["./up.sh"],
            {"KUBERNETES_VERSION": "new; rm x"},
            {},
            f"Kubernetes new; rm x is not supported; {SUPPORTED}",
            id="a Kubernetes version that is invalid",
        ),
        pytest.param(
            ["./up.sh"],
            {"API_PORT": "http"},
            {},
            "API_PORT=http is not a port number",
            id="a port that is not a number",
        ),
        pytest.param(
            ["./up.sh"],
            {"CLUSTER": "My_cluster"},
            {},
            "CLUSTER=My_cluster is not a cluster name (a-z, 0-9, '.', '-')",
            id="a name that kind would reject",
        ),
        pytest.param(
            ["./up.sh"],
            {},
            TOOLS | {"docker": DOCKER_WITH_NODE.format(mount="/var")},
            "a kind cluster or container asya exists, not created by these scripts;"
            " choose another name: CLUSTER=name",
            id="a name that is taken",
        ),
        pytest.param(
            ["./up.sh"],
            {"KUBERNETES_VERSION": "1.37"},
            TOOLS | {"docker": DOCKER_WITH_NODE.format(mount="/kind/asya-runtime")},
            "cluster asya runs Kubernetes 1.34.4, not 1.37: run make cluster-down first,"
            " or set CLUSTER=name",
            id="an existing cluster with another Kubernetes",
        ),
        pytest.param(
            ["./down.sh"],
            {},
            TOOLS | {"docker": DOCKER_WITH_NODE.format(mount="/var")},
            "the kind cluster or container asya was not created by these scripts; not removed",
            id="removal of another cluster",
        ),
        pytest.param(
            ["./down.sh"],
            {},
            {"docker": "exit 1"},
            "no container engine is running, so there is no cluster to remove",
            id="removal without an engine",
        ),
        pytest.param(
            ["./engine.sh"],
            {},
            {"docker": "exit 1", "id": "echo 1000"},
            f"no container engine is running: {ENGINE}",
            id="no engine, and not root",
        ),
        pytest.param(
            ["./engine.sh"],
            {"DOCKER_HOST": "tcp://127.0.0.1:1"},
            {"docker": "exit 1"},
            "no container engine is running at DOCKER_HOST=tcp://127.0.0.1:1",
            id="a remote engine that does not answer",
        ),
        pytest.param(
            ["./tools.sh", "kind"],
            {},
            {"kind": "echo kind v0.20.0 go1.20 linux/amd64", "go": "echo go1.20.1"},
            "kind 0.30.0 or newer is not on PATH: install it;"
            " building it needs Go 1.26.0 or newer (found: go1.20.1)",
            id="a tool that is too old, and a Go that is too old",
        ),
        pytest.param(
            ["./python-image.sh", "2.7"],
            {},
            {},
            "Python 2.7 is not supported; supported: 3.9, 3.11, 3.13",
            id="a Python that is not listed",
        ),
        pytest.param(
            ["./image.sh", "name", "/nowhere"],
            {},
            {},
            "no such file: /nowhere/Dockerfile",
            id="an image without a Dockerfile",
        ),
    ],
)
def test_an_error_is_one_line(
    run: Run, command: list[str], env: dict[str, str], programs: dict[str, str], message: str
) -> None:
    assert outcome(run(*command, env=env, programs_=programs)) == (1, "", f"error: {message}\n")


def test_a_port_in_use_is_an_error_before_anything_is_built(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        result = run("./up.sh", env={"API_PORT": port}, programs_=TOOLS)
    assert outcome(result) == (
        1,
        "",
        f"error: API_PORT={port} is in use;"
        " choose another port, or unset API_PORT for a free one\n",
    )


@pytest.mark.parametrize(
    ("asked", "minor"),
    [("1.34", "1.34"), ("v1.34", "1.34"), ("1.34.8", "1.34"), ("1.34.4", "1.34"), ("1.37", "1.37")],
)
def test_a_release_is_found_by_minor_or_by_either_full_version(
    run: Run, asked: str, minor: str
) -> None:
    result = run("bash", "-c", f'. ./lib.sh; release "$KUBERNETES_RELEASES" {asked} Kubernetes')
    assert (result.returncode, result.stdout.split()[0]) == (0, minor)


@pytest.mark.parametrize(
    ("version", "minimum", "enough"),
    [
        ("0.33.0", "0.30.0", True),
        ("0.30.0", "0.30.0", True),
        ("0.9.0", "0.30.0", False),
        ("3.19.0", "4.0.0", False),
        ("10.0.0", "4.0.0", True),
        ("", "4.0.0", False),
    ],
)
def test_versions_are_compared_as_numbers(
    run: Run, version: str, minimum: str, enough: bool
) -> None:
    result = run("bash", "-c", f'. ./lib.sh; at_least "{version}" {minimum}')
    assert (result.returncode == 0) is enough


def test_a_published_image_is_used_when_its_registry_answers(run: Run) -> None:
    docker = 'case "$1 $2" in "version "*|"manifest inspect"|"pull -q") ;; *) exit 1 ;; esac'
    result = run("./node-image.sh", "1.34", programs_={"docker": docker})
    assert re.fullmatch(r"kindest/node:v1\.34\.\d+@sha256:[0-9a-f]{64}\n", result.stdout)
    assert result.stderr == f"pulling {result.stdout}"


def test_an_existing_image_is_used_without_network_access(run: Run) -> None:
    docker = """case "$1 $2" in
      "version "*) ;;
      "image inspect") [[ $3 == asya/* ]] ;;
      *) echo asked >&2 ;;
    esac"""
    result = run("./node-image.sh", "1.34", programs_={"docker": docker})
    assert re.fullmatch(r"asya/node:v1\.34\.\d+-[0-9a-f]{8}\n", result.stdout)
    assert result.stderr == ""


def test_a_step_reports_its_usual_and_its_actual_duration(run: Run) -> None:
    result = run("bash", "-c", '. ./lib.sh; steps=2; step "making tea" "4 min" echo noise')
    assert (result.returncode, result.stdout) == (0, "")
    assert re.fullmatch(r"\[1/2\] making tea \(usually 4 min\) \.\.\. done in \ds\n", result.stderr)


def test_a_failed_step_shows_its_last_lines_and_names_its_log(run: Run, tmp_path: Path) -> None:
    script = '. ./lib.sh; pour() { seq 9; false; echo unreached; }; step "making tea" "4 min" pour'
    result = run("bash", "-c", script)
    log = tmp_path / ".cache" / "asya-runtime" / "log" / "making-tea.log"
    assert outcome(result) == (
        1,
        "",
        "making tea (usually 4 min) ... failed after 0s\n"
        + "".join(f"    {n}\n" for n in range(5, 10))
        + f"error: making tea failed; the full output is in {log}\n",
    )
    assert log.read_text().split() == [str(n) for n in range(1, 10)]


def test_an_interrupted_go_build_leaves_no_result(run: Run, tmp_path: Path) -> None:
    script = '. ./lib.sh; . ./gobuild.sh; go_build "$HOME/out" "" "" "" "$PWD/node/pause"'
    go = 'touch bin/half; echo "go: interrupted" >&2; exit 1'
    result = run("bash", "-ec", script, programs_={"go": go})
    assert (result.returncode, (tmp_path / "out").exists()) == (1, False)
    good = run("bash", "-ec", script, programs_={"go": 'touch "${@: -2:1}"'})
    assert (good.returncode, [file.name for file in (tmp_path / "out").iterdir()]) == (0, ["out"])
