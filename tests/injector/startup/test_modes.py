"""How the runtime is started in pods that other webhooks change, too."""

import json
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.errors import InjectionError, Reason
from asya_injector.mutation.inject import inject
from asya_injector.mutation.uninject import uninject
from asya_injector.startup.modes import LAUNCHERS

from tests.injector.mutation.test_inject import DEFAULTS, injected

Object = dict[str, Any]
OTHERS = ClusterDefaults("ffffffffff", {"json": "auto"})
ENTRYPOINT = "/opt/asya/asya_entrypoint.py"
PYTHON = "/opt/venv/bin/python"


def pod(annotations: dict[str, str] | None = None, /, **fields: Any) -> Object:
    keys = {f"asya.sh/{name}": text for name, text in (annotations or {}).items()}
    return {
        "metadata": {"annotations": {"asya.sh/handler": "my_app.handler.predict"} | keys},
        "spec": {"containers": [{"name": "model", **fields}]},
    }


def target(given: Object) -> Object:
    found: Object = given["spec"]["containers"][0]
    return found


def wrapper(python: str = "python3") -> list[str]:
    return [python, "-I", "-S", ENTRYPOINT, "--"]


def interpreters(item: Object) -> set[str]:
    """The interpreters of all that the injector added to a container."""
    hooks = [hook["exec"]["command"] for hook in item.get("lifecycle", {}).values()]
    probe = item["readinessProbe"]["exec"]["command"]
    words = item.get("command", []) + item.get("args", [])
    found = {probe[0], *(command[0] for command in hooks)}
    if ENTRYPOINT in words:
        found.add(words[words.index(ENTRYPOINT) - 3])
    return found


def move_command_to_args(item: Object, *launcher: str) -> None:
    """Change a container as vault-secrets-webhook does."""
    item["args"] = item.get("command", []) + item.get("args", [])
    item["command"] = list(launcher)


# --- Decisions are kept when another webhook changes what they followed from


@pytest.mark.parametrize("launcher", [["/vault/vault-env"], ["/other/launcher"], ["/a", "-x"]])
@pytest.mark.parametrize("defaults", [DEFAULTS, OTHERS])
@pytest.mark.parametrize("command", [[PYTHON, "app.py"], ["tini", "--", PYTHON, "-m", "app"]])
def test_keeps_the_interpreter_behind_another_webhooks_launcher(
    command: list[str], defaults: ClusterDefaults, launcher: list[str]
) -> None:
    first = injected(pod(command=command, args=["-v"])).pod
    move_command_to_args(target(first), *launcher)
    result = target(injected(first, defaults).pod)
    assert interpreters(result) == {PYTHON}
    if defaults is DEFAULTS or launcher == ["/vault/vault-env"]:
        words = [*launcher, *wrapper(PYTHON), *command, "-v"]
        assert result["command"] + result["args"] == words


def test_keeps_the_interpreter_if_another_webhook_changes_the_program() -> None:
    first = injected(pod(command=[PYTHON, "app.py"])).pod
    target(first)["command"] = [*wrapper(PYTHON), "opentelemetry-instrument", PYTHON, "app.py"]
    assert interpreters(target(injected(first).pod)) == {PYTHON}
    # In mode hook, the command shows it no more, but the hooks do.
    first = injected(pod({"mode": "hook"}, command=[PYTHON, "app.py"])).pod
    target(first)["command"] = ["otherwise", PYTHON, "app.py"]
    assert interpreters(target(injected(first).pod)) == {PYTHON}


@pytest.mark.parametrize("forged", ["/bin/evil", "python3.99", "-c", "", "$(X)/python", 1, None])
def test_a_forged_interpreter_in_the_record_has_no_effect(forged: Any) -> None:
    first = injected(pod(command=["serve"])).pod
    record = json.loads(first["metadata"]["annotations"]["asya.sh/injected"])
    assert record["python"] == ""
    record["python"] = forged
    first["metadata"]["annotations"]["asya.sh/injected"] = json.dumps(record)
    assert interpreters(target(injected(first).pod)) == {"python3"}
    assert "evil" not in json.dumps(injected(first).pod["spec"])


def test_a_record_without_an_interpreter_is_one() -> None:
    first = injected(pod(command=["serve"])).pod
    annotations = first["metadata"]["annotations"]
    record = json.loads(annotations["asya.sh/injected"])
    del record["python"]
    annotations["asya.sh/injected"] = json.dumps(record)
    assert uninject(first) == pod(command=["serve"])


def test_an_edited_program_in_a_copy_counts_more_than_the_record() -> None:
    copied = injected(pod(command=[PYTHON, "app.py"])).pod
    target(copied)["command"][-2] = "python3.12"
    assert interpreters(target(injected(copied).pod)) == {"python3.12"}


def test_keeps_mode_hook_if_another_webhook_adds_an_unknown_command() -> None:
    first = injected(pod(args=["serve"])).pod
    move_command_to_args(target(first), "/other/launcher")
    again = injected(first)
    assert again.mode.value == "hook"
    assert again.pod == first


# --- Launchers


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_wrapper_stands_inside_a_launcher(name: str) -> None:
    start = f"/x/{name}"
    for command, args, expected in (
        ([start], ["python", "app.py"], ([start, *wrapper("python")], ["python", "app.py"])),
        ([start, "serve"], None, ([start, *wrapper(), "serve"], None)),
        ([start, "--", "serve"], None, ([start, "--", *wrapper(), "serve"], None)),
        (["tini", "-g", "--", start, "serve"], None,
         (["tini", "-g", "--", start, *wrapper(), "serve"], None)),
        (["tini"], ["--", start, "serve"], (["tini"], ["--", start, *wrapper(), "serve"])),
        ([start, start], None, ([start, *wrapper(), start], None)),
        ([start, "tini", "--", "python", "a.py"], None,
         ([start, *wrapper("python"), "tini", "--", "python", "a.py"], None)),
    ):  # fmt: skip
        fields = {"command": command} | ({"args": args} if args else {})
        given = pod(**fields)
        result = injected(given)
        assert result.mode.value == "wrap"
        item = target(result.pod)
        assert (item["command"], item.get("args")) == expected
        assert uninject(result.pod) == given


def test_the_wrapper_moves_into_a_launcher_that_replaces_an_unknown_entrypoint() -> None:
    first = injected(pod(args=["serve"])).pod
    assert "lifecycle" in target(first)
    # The webhook has read ENTRYPOINT from the registry.
    target(first)["args"] = ["python3.12", "app.py", "serve"]
    target(first)["command"] = ["/vault/vault-env"]
    again = injected(first)
    assert again.mode.value == "wrap"
    item = target(again.pod)
    assert item["command"] == ["/vault/vault-env", *wrapper("python3.12")]
    assert item["args"] == ["python3.12", "app.py", "serve"]
    assert "lifecycle" not in item
    assert interpreters(item) == {"python3.12"}


@pytest.mark.parametrize("command", [["/x/vault-envs", "a"], ["vault-env"], ["sh", "vault-env"]])
def test_the_wrapper_stands_before_other_programs(command: list[str]) -> None:
    assert target(injected(pod(command=command)).pod)["command"] == [*wrapper(), *command]


def test_the_interpreter_may_stand_in_args() -> None:
    item = target(injected(pod(command=["tini", "--"], args=["python3.11", "app.py"])).pod)
    assert interpreters(item) == {"python3.11"}
    # Without a command they are arguments of an unknown ENTRYPOINT.
    assert interpreters(target(injected(pod(args=["python3.11"])).pod)) == {"python3"}


# --- Programs that must be process 1

PROCESS_1 = [
    ["/init"], ["/init", "serve"], ["init"], ["/sbin/init"], ["/usr/sbin/init"], ["/bin/init"],
    ["/lib/systemd/systemd"], ["/usr/lib/systemd/systemd", "--system"], ["systemd"],
    ["/sbin/my_init", "--", "serve"], ["/sbin/runit"], ["/sbin/runit-init"], ["/sbin/openrc-init"],
    ["/package/admin/s6-overlay-3.2/libexec/init"], ["s6-overlay-suexec", "x"], ["busybox", "init"],
    ["/bin/sh", "-c", "exec /init"], ["bash", "-ec", "export A=1; exec /sbin/init"],
    ["sh", "-c", "/init"], ["/vault/vault-env", "/init"],
]  # fmt: skip


@pytest.mark.parametrize("command", PROCESS_1, ids=" ".join)
def test_auto_uses_hooks_for_a_program_that_must_be_process_1(command: list[str]) -> None:
    for fields in ({"command": command}, {"command": command[:1], "args": command[1:]}):
        result = injected(pod(**fields))
        assert result.mode.value == "hook"
        assert result.mode.reason.endswith(" must be process 1")
        assert target(result.pod)["command"] == fields["command"]
        assert result.warnings == ()


@pytest.mark.parametrize("command", PROCESS_1, ids=" ".join)
def test_mode_wrap_warns_about_a_program_that_must_be_process_1(command: list[str]) -> None:
    given = pod({"mode": "wrap"}, command=command)
    result = injected(given)
    assert len(result.warnings) == 1
    assert "must be process 1, but mode wrap starts it as a child; use mode hook" in str(
        result.warnings
    )
    again = injected(result.pod)
    assert again.warnings == result.warnings
    assert uninject(result.pod) == given


@pytest.mark.parametrize(
    "command",
    [
        ["/app/init"], ["/init.sh"], ["init-db"], ["/sbin/tini", "--", "/init"], ["systemd-run"],
        ["sh", "-c", "/init && serve"], ["sh", "-c", "serve /init"], ["sh", "/init"],
        ["busybox", "httpd"], ["python", "/init"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_other_programs_are_wrapped_without_a_warning(command: list[str]) -> None:
    result = injected(pod(command=command))
    assert result.mode.value == "wrap"
    assert result.warnings == ()


# --- Hooks that sleep


def sleep(seconds: int, python: str = "python3") -> list[str]:
    program = f"import time; time.sleep({seconds})  # lifecycle sleep"
    return [python, "-I", "-S", "-c", program]


@pytest.mark.parametrize("hook", ["preStop", "postStart"])
@pytest.mark.parametrize("seconds", [0, 5, 3600])
def test_chains_a_hook_that_sleeps(seconds: int, hook: str) -> None:
    given = pod(lifecycle={hook: {"sleep": {"seconds": seconds}, "future": 1}, "stopSignal": "X"})
    result = injected(given)
    option = {"preStop": "--stop", "postStart": "--detach"}[hook]
    lifecycle = target(result.pod)["lifecycle"]
    assert lifecycle[hook] == {
        "exec": {"command": [*wrapper()[:-1], option, "--", *sleep(seconds)]},
        "future": 1,
    }
    assert lifecycle["stopSignal"] == "X"
    assert uninject(result.pod) == given
    # A copy with other settings.
    again = injected(result.pod, OTHERS).pod
    assert uninject(again) == given
    annotations = given["metadata"]["annotations"]
    annotations["asya.sh/python"] = PYTHON
    again["metadata"]["annotations"] |= annotations
    assert target(injected(again).pod)["lifecycle"][hook]["exec"]["command"][0] == PYTHON
    assert target(injected(again).pod)["lifecycle"] == target(injected(given).pod)["lifecycle"]


def test_mode_wrap_keeps_hooks_of_each_kind() -> None:
    kinds: list[Object] = [
        {"sleep": {"seconds": 1}}, {"httpGet": {"port": 1}}, {"tcpSocket": {"port": 1}},
    ]  # fmt: skip
    for kind in kinds:
        lifecycle = {"preStop": kind, "postStart": kind}
        item = target(injected(pod(command=["serve"], lifecycle=lifecycle)).pod)
        assert item["lifecycle"] == lifecycle


def test_a_hook_of_two_kinds_stays_as_invalid_as_it_is() -> None:
    both = {"exec": {"command": ["x"]}, "sleep": {"seconds": 1}}
    given = pod(lifecycle={"preStop": both})
    result = injected(given).pod
    assert target(result)["lifecycle"]["preStop"]["sleep"] == {"seconds": 1}
    assert uninject(result) == given


def test_a_hook_without_a_kind_is_rejected() -> None:
    with pytest.raises(InjectionError) as caught:
        inject(pod(lifecycle={"preStop": {"future": {}}}), DEFAULTS)
    assert caught.value.reason == Reason.HOOK_CONFLICT
