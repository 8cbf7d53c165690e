"""Lifecycle hooks of users, in front of which the runtime's are put."""

import pytest
from asya_injector.errors import InjectionError, Reason
from asya_injector.mutation.inject import inject
from asya_injector.mutation.uninject import uninject

from tests.injector.mutation.test_inject import DEFAULTS, injected
from tests.injector.startup.test_modes import OTHERS, PYTHON, Object, pod, target, wrapper


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
