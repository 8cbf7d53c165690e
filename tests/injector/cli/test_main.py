"""Help, errors, exit statuses, options for cluster defaults, explanations."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from asya_injector.annotations.table import TABLE
from asya_injector.cli.main import program
from asya_injector.manifests import chart_values

from tests.injector.commands import asya

Object = dict[str, Any]
REPOSITORY = Path(__file__).parents[3]
HANDLER = {"asya.sh/handler": "my_app.handler.predict"}
COMMANDS = ["inject", "uninject", "explain", "check", "prune", "run"]


def deployment(annotations: Object | None = None, **container: Any) -> Object:
    model = {"name": "model", "image": "m", **container}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "m", "annotations": HANDLER | (annotations or {})},
        "spec": {"template": {"spec": {"containers": [model, {"name": "asya-sidecar"}]}}},
    }


def explained(item: Object, *words: str) -> Object:
    done = asya("explain", "-o", "json", *words, stdin=json.dumps(item))
    result: Object = json.loads(done.out)
    jsonschema.validate(result, json.loads(asya("explain", "--schema").out))
    (one,) = result["objects"]
    assert (done.status, done.err) == (1 if one["result"] == "rejected" else 0, "")
    explanation: Object = one
    return explanation


# --- Help and errors


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_examples_and_exit_statuses(command: str) -> None:
    page = asya(command, "--help").out
    known = "Usage|Options|Examples|Exit status|Environment"
    titles = re.findall(rf"^ *({known}):", page, re.MULTILINE)
    last = ["Exit status", "Environment"] if command == "run" else ["Examples", "Exit status"]
    assert titles == ["Usage", "Options", *last]
    assert page == asya(command, "-h").out
    assert "\x1b" not in page
    assert max(map(len, page.splitlines())) <= 100
    # Examples and exit statuses keep their lines.
    status = "  78  a setting" if command == "run" else "  2  wrong usage"
    assert f"\n  {status}" in page


def test_the_program_lists_its_commands() -> None:
    page = asya("--help").out
    listed = re.findall(r"^  ([a-z]+)  .*\.$", page, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    assert "  NO_COLOR  " in page
    assert re.fullmatch(r"asya-injector, version \d+\.\d+\.\d+\n", asya("--version").out)


def test_without_a_command_the_help_is_printed_as_an_error() -> None:
    done = asya()
    assert (done.status, done.out, done.err) == (2, "", asya("--help").out)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["bogus"], "No such command 'bogus' (see asya-injector --help)"),
        (["inject", "--bogus"], "--bogus"),
        (["explain", "-o", "xml"], "Invalid value for '-o' / '--output': 'xml' is not one of"),
        (["prune", "--older-than", "1"], "'1' is not a duration such as 90s, 10m, 2h or 1d"),
        (["prune", "--keep", "x"], "--keep: 'x' is not a hash of 10 hexadecimal digits"),
        (["inject", "--mode", "bogus"], 'default of asya.sh/mode: "bogus" is not valid; must be'),
        (["inject", "--values", "/none"], "File '/none' does not exist"),
        (["check", "--kubeconfig", "/none"], "cluster unreachable: Invalid kube-config file."),
        (
            ["check", "--kubeconfig", "/"],
            "cluster unreachable: [Errno 21] Is a directory: '/'; see",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(words: list[str], line: str) -> None:
    done = asya(*words)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("asya-injector: ")
    assert line in done.err
    assert done.err.count("\n") == 1


def test_a_closed_pipe_is_not_reported() -> None:
    text = "\n---\n".join(["kind: Service\nmetadata: {}\n" + "# filler\n" * 500] * 50)
    words = [sys.executable, "-m", "asya_injector", "inject"]
    environ = {"PYTHONPATH": str(REPOSITORY / "injector"), "PATH": os.environ["PATH"]}
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as broken:
        done = subprocess.run(
            words,
            input=text,
            env=environ,
            stdout=broken,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    summary = "asya-injector: 0 injected, 0 unchanged, 0 rejected\n"
    assert (done.returncode, done.stderr) == (1, summary)


def test_output_is_colored_on_terminals_unless_no_color_is_set(tmp_path: Path) -> None:
    (tmp_path / "d.json").write_text(json.dumps(deployment()))
    script = (
        "import os, pty, subprocess, sys\n"
        "ours, theirs = pty.openpty()\n"
        "words = [sys.executable, '-m', 'asya_injector', 'explain', '-f', sys.argv[1]]\n"
        "started = subprocess.Popen(words, stdout=theirs)\n"
        "os.close(theirs)\n"
        "text = b''\n"
        "try:\n    while True: text += os.read(ours, 4096)\n"
        "except OSError: pass\n"
        "assert started.wait() == 0\n"
        "sys.exit(3 if b'\\x1b[3' in text else 0)"
    )
    environ = {"PYTHONPATH": str(REPOSITORY / "injector"), "PATH": os.environ["PATH"]}
    words = [sys.executable, "-c", script, str(tmp_path / "d.json")]

    def is_colored(**more: str) -> bool:
        done = subprocess.run(
            words, env=environ | more, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        assert done.returncode in (0, 3), done.stderr
        return done.returncode == 3

    assert is_colored(TERM="xterm")
    assert not is_colored(TERM="xterm", NO_COLOR="1")
    assert "\x1b" not in asya("explain", stdin=json.dumps(deployment())).out


# --- Options and values


def test_each_value_of_the_chart_is_an_option() -> None:
    values = (REPOSITORY / "chart" / "values.yaml").read_text()
    block = re.search(r"^  defaults:\n((?: {4}.*\n)+)", values, re.MULTILINE)
    assert block is not None
    of_chart = re.findall(r"^    ([a-z-]+):", block[1], re.MULTILINE)
    assert sorted(of_chart) == sorted(entry.name for entry in chart_values.DEFAULTS)
    for command in ("inject", "explain"):
        options = {word for param in program.commands[command].params for word in param.opts}
        assert {f"--{name}" for name in of_chart} <= options


def test_options_take_precedence_over_a_values_file(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text(
        "injector: {replicas: 3}\nruntime:\n  defaults:\n    concurrency: 4\n    probe: false\n"
        "    max-message-size: 1048576\n    read-timeout: 2.50\n    json: orjson\n    mode: null\n"
    )
    settings = explained(deployment(), "--values", str(values), "--json", "stdlib")["actor"][
        "settings"
    ]
    from_chart = {name: each["value"] for name, each in settings.items() if each["from"] == "chart"}
    assert from_chart == {
        "concurrency": "4",
        "probe": "false",
        "max-message-size": "1048576",
        "read-timeout": "2.5",
        "json": "stdlib",
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "runtime: {defaults: {concurency: 4}}",
            "v.yaml: unknown name 'concurency' in runtime.defaults; known names are",
        ),
        (
            "runtime: {defaults: {handler: a.b}}",
            "v.yaml: unknown name 'handler' in runtime.defaults; known names are",
        ),
        ("runtime: {defaults: [1]}", "runtime.defaults must be a mapping of names and values"),
        ("runtime: {defaults: {concurrency: 0}}", 'asya.sh/concurrency: "0" is not valid'),
        # A file in JSON is read too.
        ('{"runtime": {"defaults": {"concurrency": 0}}}', 'asya.sh/concurrency: "0" is not valid'),
        ("a: [", "expected node content"),
    ],
)
def test_a_wrong_values_file_is_wrong_usage(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "v.yaml").write_text(text)
    done = asya("inject", "--values", tmp_path / "v.yaml")
    assert (done.status, done.out) == (2, "")
    assert line in done.err


# --- Explanations


def test_explains_an_actor_whole() -> None:
    item = deployment({"asya.sh/concurrency": "4"}, command=["serve", "it all"])
    item["spec"]["template"]["metadata"] = {"annotations": {"asya.sh/chunk-size": "8192"}}
    explanation = explained(item, "--read-timeout", "5")
    actor = explanation.pop("actor")
    assert explanation == {
        "source": "stdin",
        "document": 1,
        "kind": "Deployment",
        "namespace": "m",
        "name": "d",
        "result": "injected",
        "warnings": [],
    }
    assert actor["container"] == {"name": "model", "because": "it is the first container"}
    assert actor["mode"] == {"name": "wrap", "because": "the container has a command"}
    assert actor["socket"] == {
        "name": "asya-socket",
        "because": "the container mounts no volume at /tmp/sockets",
    }
    assert {name: each["from"] for name, each in actor["settings"].items()} == {
        entry.name: "default"
        for entry in TABLE
        if entry.name not in ("inject", "container", "mode", "sidecar")
    } | {
        "handler": "workload",
        "concurrency": "workload",
        "chunk-size": "annotation",
        "read-timeout": "chart",
    }
    assert actor["containers"]["model"]["command"] == [
        "python3", "-I", "-S", "/opt/asya/asya_entrypoint.py", "--", "serve", "it all",
    ]  # fmt: skip
    assert actor["containers"]["model"]["env"] == {
        "ASYA_HANDLER": "my_app.handler.predict",
        "ASYA_SOCKET_PATH": "/tmp/sockets/app.sock",
        "ASYA_CHUNK_SIZE": "8192",
        "ASYA_CONCURRENCY": "4",
        "ASYA_READ_TIMEOUT": "5",
        "ASYA_SOCKET_MODE": "0666",
    }
    mounts = [mount["mountPath"] for mount in actor["containers"]["model"]["mounts"]]
    assert mounts == ["/opt/asya", "/tmp/sockets"]
    assert actor["containers"]["asya-sidecar"] == {
        "env": {"ASYA_SOCKET_PATH": "/tmp/sockets/app.sock"},
        "mounts": [{"name": "asya-socket", "mountPath": "/tmp/sockets"}],
    }
    assert [volume["name"] for volume in actor["volumes"]] == ["asya-runtime", "asya-socket"]
    shown = asya("explain", "--read-timeout", "5", stdin=json.dumps(item)).out
    for line in (
        "stdin:1 Deployment m/d: becomes an actor",
        "  container   model, because it is the first container",
        "  mode        wrap, because the container has a command",
        "    mount     /opt/asya from asya-runtime, read-only",
        "    mount     /tmp/sockets from asya-socket",
        "  concurrency 4, from the workload's annotation",
        "  chunk-size  8192, from its annotation",
        "  read-timeout 5, from the cluster defaults",
        "    command   python3 -I -S /opt/asya/asya_entrypoint.py -- serve 'it all'",
    ):
        assert line in shown.splitlines()


WRAPPER = ["python3", "-I", "-S", "/opt/asya/asya_entrypoint.py", "--"]
RUNTIME_MOUNT = {"name": "asya-runtime", "mountPath": "/opt/asya", "readOnly": True}
FIRST = "model, because it is the first container"
HOOK = "hook, because the container has no command, and the image's ENTRYPOINT must stay"
WRAP = "wrap, because the container has a command"
REASONS = [
    pytest.param({}, {}, [FIRST, HOOK], id="no-command"),
    pytest.param({}, {"command": ["serve"]}, [WRAP], id="command"),
    pytest.param({}, {"command": [], "args": ["serve"]}, [HOOK], id="empty-command-and-args"),
    pytest.param({}, {"command": [], "args": [*WRAPPER, "serve"]},
                 ["wrap, because the container's args start the wrapper"], id="wrapped-args"),
    pytest.param({}, {"command": [*WRAPPER, "serve"]}, [WRAP], id="wrapped-command"),
    pytest.param({"asya.sh/mode": "auto"}, {"command": ["serve"]}, [WRAP], id="mode-auto"),
    pytest.param({"asya.sh/mode": "mount"}, {}, ["mount, because asya.sh/mode sets it"], id="mode"),
    pytest.param({"asya.sh/mode": "wrap"}, {"command": [], "args": [*WRAPPER, "serve"]},
                 ["wrap, because asya.sh/mode sets it"], id="mode-with-wrapped-args"),
    pytest.param({"asya.sh/container": "model"}, {},
                 ["model, because asya.sh/container names it"], id="container"),
    pytest.param({"asya.sh/container": "model"}, {"volumeMounts": [RUNTIME_MOUNT]},
                 ["model, because asya.sh/container names it"], id="container-with-the-runtime"),
    pytest.param({}, {"volumeMounts": [RUNTIME_MOUNT]},
                 ["model, because it already has the runtime"], id="mounted-by-hand"),
    pytest.param({}, {}, ["asya-socket, because the container mounts no volume at /tmp/sockets"],
                 id="socket-volume"),
    pytest.param({"asya.sh/socket-path": "/run/s/a.sock"},
                 {"volumeMounts": [{"name": "mine", "mountPath": "/run/s"}]},
                 ["mine, because the container mounts it at /run/s"], id="users-socket-volume"),
    pytest.param({}, {"env": [{"name": "ASYA_SOCKET_PATH", "value": "/run/s/a.sock"}]},
                 ["asya-socket, because the container mounts no volume at /run/s",
                  "/run/s/a.sock, from the container's env"], id="socket-path-in-env"),
    pytest.param({}, {"command": ["tini", "--", "/venv/bin/python3.11", "-m", "app"]},
                 ["/venv/bin/python3.11, from the container's command"], id="interpreter"),
    pytest.param({"asya.sh/python": "pypy3"}, {"command": ["python3.11", "-m", "app"]},
                 ["pypy3, from the workload's annotation"], id="interpreter-annotated"),
    pytest.param({}, {"env": [{"name": "ASYA_CHUNK_SIZE", "value": "0512"}]},
                 ["512, from the container's env"], id="setting-in-env"),
    pytest.param({}, {"env": [{"name": "ASYA_JSON", "valueFrom": {"fieldRef": {}}}]},
                 [", from the container's env"], id="setting-with-value-from"),
]  # fmt: skip


@pytest.mark.parametrize(("annotations", "fields", "reasons"), REASONS)
def test_explains_each_decision(annotations: Object, fields: Object, reasons: list[str]) -> None:
    item = deployment(annotations, **fields)
    item["spec"]["template"]["spec"]["volumes"] = [{"name": "mine", "emptyDir": {}}]
    explained(item)
    lines = asya("explain", stdin=json.dumps(item)).out.splitlines()
    texts = [re.sub(r"^ +\S+ +(?=\S)|^ +\S+(?= ,|, from)", "", line) for line in lines]
    for reason in reasons:
        assert reason in texts


def test_explains_a_mode_of_the_chart_and_kubectls_container() -> None:
    item = deployment()
    annotations = {"kubectl.kubernetes.io/default-container": "asya-sidecar"}
    item["spec"]["template"]["metadata"] = {"annotations": annotations}
    actor = explained(item, "--mode", "hook")["actor"]
    assert actor["mode"] == {"name": "hook", "because": "the cluster defaults set it"}
    assert actor["container"] == {
        "name": "asya-sidecar",
        "because": "kubectl.kubernetes.io/default-container names it",
    }


SETTINGS = [
    pytest.param({}, ["512"], {"value": "512", "from": "container"}, id="env"),
    pytest.param({}, ["512", "1024"], {"value": "1024", "from": "container"}, id="last-env"),
    pytest.param({"asya.sh/chunk-size": "1024"}, ["512", "1024"],
                 {"value": "1024", "from": "workload"}, id="annotation-and-env"),
    pytest.param({}, [""], {"value": "4096", "from": "container"}, id="empty-env"),
]  # fmt: skip


@pytest.mark.parametrize(("annotations", "values", "setting"), SETTINGS)
def test_explains_where_a_setting_comes_from(
    annotations: Object, values: list[str], setting: Object
) -> None:
    env = [{"name": "ASYA_CHUNK_SIZE", "value": value} for value in values]
    actor = explained(deployment(annotations, env=env))["actor"]
    assert actor["settings"]["chunk-size"] == setting


def test_explains_that_a_container_is_an_actor_already() -> None:
    env = [{"name": "ASYA_CHUNK_SIZE", "value": "512"}]
    given = deployment(command=["serve"], env=env)
    words = ["--concurrency", "4"]
    item = json.loads(asya("inject", "--no-configmap", *words, stdin=json.dumps(given)).out)
    item["spec"]["template"]["spec"]["containers"].insert(0, {"name": "proxy"})
    actor = explained(item, *words)["actor"]
    assert actor["container"] == {"name": "model", "because": "it already has the runtime"}
    assert actor["mode"] == {"name": "wrap", "because": "the container has a command"}
    assert actor["settings"] == explained(given, *words)["actor"]["settings"]
    assert actor["containers"] == {}


def test_explains_the_interpreter_of_an_actor_in_mode_runtime_as_before() -> None:
    given = deployment({"asya.sh/mode": "runtime"})
    item = json.loads(asya("inject", "--no-configmap", stdin=json.dumps(given)).out)
    settings = explained(item)["actor"]["settings"]
    assert settings["python"] == {"value": "python3", "from": "default"}


def test_a_command_cannot_forge_a_line() -> None:
    item = deployment(command=["serve", "\x1b[2J\nstdin:1 Deployment m/d: left alone"])
    shown = asya("explain", stdin=json.dumps(item)).out.splitlines()
    assert all(line.isprintable() for line in shown)
    assert [line for line in shown if line.startswith("stdin:")] == [
        "stdin:1 Deployment m/d: becomes an actor"
    ]


def test_explains_why_an_object_is_left_alone() -> None:
    item = deployment({"asya.sh/inject": "false"})
    explanation = explained(item)
    reason = 'asya.sh/inject is "false"'
    assert (explanation["result"], explanation["because"]) == ("left-alone", reason)
    assert asya("explain", stdin=json.dumps(item)).out == (
        f"stdin:1 Deployment m/d: left alone, because {reason}\n"
    )


def test_explains_a_rejection_with_its_reason_code() -> None:
    explanation = explained(deployment({"asya.sh/container": "modle"}))
    assert explanation["code"] == "ContainerNotFound"
    assert explanation["because"].startswith('asya.sh/container: no container "modle" in this pod')


def test_shows_warnings() -> None:
    item = deployment(readinessProbe={"httpGet": {"port": 80}})
    (warning,) = explained(item)["warnings"]
    assert "keeps its own readiness probe" in warning
    assert f"  warning     {warning}" in asya("explain", stdin=json.dumps(item)).out.splitlines()
