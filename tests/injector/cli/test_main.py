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
    assert (done.status, done.err) == (1 if one["result"] == "refused" else 0, "")
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
    assert (done.returncode, done.stderr) == (1, "")


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
    settings = explained(deployment(), "--values", str(values), "--json", "auto")["actor"][
        "settings"
    ]
    said = {name: each["value"] for name, each in settings.items() if each["from"] == "chart"}
    assert said == {
        "concurrency": "4",
        "probe": "false",
        "max-message-size": "1048576",
        "read-timeout": "2.5",
        "json": "auto",
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
        ("a: [", "expected the node content"),
    ],
)
def test_a_wrong_values_file_is_wrong_usage(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "v.yaml").write_text(text)
    done = asya("inject", "--values", tmp_path / "v.yaml")
    assert (done.status, done.out) == (2, "")
    assert line in done.err


# --- Explanations


def test_an_actor_is_explained_whole() -> None:
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
    assert actor["container"] == {"name": "model", "because": "the first of the pod"}
    assert actor["mode"] == {"name": "wrap", "because": "because the container has a command"}
    assert {name: each["from"] for name, each in actor["settings"].items()} == {
        entry.name: "default"
        for entry in TABLE
        if entry.name not in ("inject", "container", "mode")
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
        "  container   model, the first of the pod",
        "  mode        wrap, because the container has a command",
        "    mount     /opt/asya from asya-runtime, read-only",
        "    mount     /tmp/sockets from asya-socket",
        "  concurrency 4, by the workload's annotation",
        "  chunk-size  8192, by its annotation",
        "  read-timeout 5, by the chart's values or an option",
        "    command   python3 -I -S /opt/asya/asya_entrypoint.py -- serve 'it all'",
    ):
        assert line in shown.splitlines()


@pytest.mark.parametrize(
    ("annotations", "fields", "container", "mode"),
    [
        ({}, {}, "the first of the pod", "because the container has no command, so its image's"),
        ({"asya.sh/container": "model"}, {}, "as asya.sh/container says", "because the container"),
        ({"asya.sh/mode": "mount"}, {}, "the first of the pod", "as asya.sh/mode says"),
    ],
)
def test_reasons_are_told(annotations: Object, fields: Object, container: str, mode: str) -> None:
    actor = explained(deployment(annotations, **fields))["actor"]
    assert actor["container"]["because"] == container
    assert actor["mode"]["because"].startswith(mode)


def test_a_mode_of_the_chart_and_kubectls_container_are_told() -> None:
    item = deployment()
    annotations = {"kubectl.kubernetes.io/default-container": "asya-sidecar"}
    item["spec"]["template"]["metadata"] = {"annotations": annotations}
    actor = explained(item, "--mode", "hook")["actor"]
    assert actor["mode"] == {"name": "hook", "because": "as the chart's value says"}
    assert actor["container"] == {
        "name": "asya-sidecar",
        "because": "as kubectl.kubernetes.io/default-container says",
    }


def test_a_variable_of_the_container_is_told_as_its_own() -> None:
    env = [{"name": "ASYA_CHUNK_SIZE", "value": "512"}]
    settings = explained(deployment(env=env))["actor"]["settings"]
    assert settings["chunk-size"] == {"value": "512", "from": "container"}


def test_of_two_variables_of_one_name_the_last_is_told_and_an_annotation_before_both() -> None:
    env = [{"name": "ASYA_CHUNK_SIZE", "value": value} for value in ("512", "1024")]
    settings = explained(deployment(env=env))["actor"]["settings"]
    assert settings["chunk-size"] == {"value": "1024", "from": "container"}
    asked = deployment({"asya.sh/chunk-size": "1024"}, env=env)
    settings = explained(asked)["actor"]["settings"]
    assert settings["chunk-size"] == {"value": "1024", "from": "workload"}


def test_of_an_actor_it_is_told_that_it_is_one_already() -> None:
    item = json.loads(asya("inject", "--no-configmap", stdin=json.dumps(deployment())).out)
    item["spec"]["template"]["spec"]["containers"].insert(0, {"name": "proxy"})
    container = explained(item)["actor"]["container"]
    assert container == {"name": "model", "because": "which has the runtime already"}


def test_what_stands_in_a_command_cannot_forge_a_line() -> None:
    item = deployment(command=["serve", "\x1b[2J\nstdin:1 Deployment m/d: left alone"])
    shown = asya("explain", stdin=json.dumps(item)).out.splitlines()
    assert all(line.isprintable() for line in shown)
    assert [line for line in shown if line.startswith("stdin:")] == [
        "stdin:1 Deployment m/d: becomes an actor"
    ]


def test_what_is_left_alone_says_why() -> None:
    item = deployment({"asya.sh/inject": "false"})
    explanation = explained(item)
    assert (explanation["result"], explanation["because"]) == ("left-alone", "it is switched off")
    assert asya("explain", stdin=json.dumps(item)).out == (
        "stdin:1 Deployment m/d: left alone, it is switched off\n"
    )


def test_a_refusal_is_told_with_its_code() -> None:
    explanation = explained(deployment({"asya.sh/container": "modle"}))
    assert explanation["code"] == "ContainerNotFound"
    assert explanation["because"].startswith('asya.sh/container: no container "modle" in this pod')


def test_warnings_are_told() -> None:
    item = deployment(readinessProbe={"httpGet": {"port": 80}})
    (warning,) = explained(item)["warnings"]
    assert "keeps its own readiness probe" in warning
    assert f"  warning     {warning}" in asya("explain", stdin=json.dumps(item)).out.splitlines()
