"""What was decided stays, also if another webhook changes what it followed from."""

import json
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.mutation.uninject import uninject

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
