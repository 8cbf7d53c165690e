"""Interpreters, launchers, and programs that must be process 1."""

import pytest
from asya_injector.mutation.uninject import uninject
from asya_injector.startup.programs import LAUNCHERS, SUBCOMMAND_LAUNCHERS

from tests.injector.mutation.test_inject import injected
from tests.injector.startup.test_modes import interpreters, pod, target, wrapper

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
        ([start, "--provider", "google", "python", "a.py"], None,
         ([start, "--provider", "google", *wrapper("python"), "python", "a.py"], None)),
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


@pytest.mark.parametrize("name", SUBCOMMAND_LAUNCHERS)
def test_the_wrapper_stands_inside_a_launcher_with_a_subcommand(name: str) -> None:
    program, subcommand = name.split()
    start = [f"/x/{program}", subcommand, "--option", "value", "--"]
    for before, words in (
        (start, ["python3.12", "app.py"]),
        ([*start, "tini", "--", "vault-env"], ["python3.12", "app.py"]),
        (["vault-env", *start], ["python3.12", "app.py"]),
        (["tini", "--", program, subcommand, "--"], ["python3.12", "app.py", "--", "x"]),
    ):
        given = pod(command=before + words)
        result = injected(given)
        assert target(result.pod)["command"] == [*before, *wrapper("python3.12"), *words]
        assert interpreters(target(result.pod)) == {"python3.12"}
        assert injected(result.pod).pod == result.pod
        assert uninject(result.pod) == given
    # It is unknown where the program begins, or there is no launcher.
    for words in (
        [program, subcommand, "serve"],
        [program, "--", "serve"],
        [program, subcommand, "--"],
        ["x", subcommand, "--", "y"],
    ):
        assert target(injected(pod(command=words)).pod)["command"] == [*wrapper(), *words]


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
    ["sh", "-c", "/init"], ["/vault/vault-env", "/init"], ["op", "run", "--", "/init"],
    ["bash", "-euo", "pipefail", "-c", "/init"],
    ["/bin/bash", "-l", "-e", "-c", "a; exec /init"], ["sh", "-c", "--", "exec '/init' \"$@\""],
    ["sh", "-c", 'exec "/sbin/init"'], ["/usr/bin/env", "A=1", "/init"],
    ["env", "-i", "sh", "-c", "/init"],
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
        ["busybox", "httpd"], ["python", "/init"], ["env"], ["env", "A=/init", "serve"], ["sh"],
        ["bash", "-e", "/init", "-c", "/init"], ["sh", "-c"], ["bash", "-x", "run.sh"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_other_programs_are_wrapped_without_a_warning(command: list[str]) -> None:
    result = injected(pod(command=command))
    assert result.mode.value == "wrap"
    assert result.warnings == ()
