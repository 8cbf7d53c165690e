"""Any object that the API's schemas allow gives a result or a rejection, in every command."""

import json
import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.injector.commands import asya
from tests.support.any_object import EXAMPLES, Generator

Object = dict[str, Any]
KINDS = ["/v1/Pod", "apps/v1/Deployment", "batch/v1/CronJob", "/v1/Service", "/v1/ConfigMap"]


def check_commands(text: str) -> None:
    for words in (["inject", "-n", "m"], ["uninject"], ["explain"], ["explain", "-o", "json"]):
        done = asya(*words, stdin=text)
        assert done.status in (0, 1)
        assert "Traceback" not in done.err
        assert "InternalError" not in done.err + done.out
        for line in done.err.splitlines():
            assert line.isprintable()
            assert line.startswith("asya-injector: ")
        if done.status == 1 and words[0] != "explain":
            assert done.out == ""
            assert re.search(r"\([A-Za-z]+\)$", done.err, re.MULTILINE)
        if words[0] == "inject" and done.status == 0:
            assert asya("inject", "-n", "m", stdin=done.out).out == done.out
            if not re.search("asya.sh/(injected|inherited)", text):
                assert asya("uninject", stdin=done.out).out == text


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.integers(min_value=0), st.sampled_from(KINDS), st.booleans())
def test_any_valid_object_gives_a_result_or_a_rejection(
    seed: int, kind: str, is_yaml: bool
) -> None:
    item = Generator(seed).generate(kind)
    text = yaml.safe_dump(item, allow_unicode=True) if is_yaml else json.dumps(item, indent=2)
    check_commands(text)


MODEL: Object = {"name": "model", "image": "m"}
REPORTED: dict[str, Object] = {
    "stop-signal": {**MODEL, "lifecycle": {"stopSignal": "SIGUSR1"}},
    "stop-signal-and-hook": {**MODEL, "lifecycle": {"stopSignal": "SIGUSR1", "preStop": None}},
    "nameless-variable": {**MODEL, "env": [{}, {"value": "x"}, {"valueFrom": {}}]},
    "nameless-mount": {**MODEL, "volumeMounts": [{}]},
    "nameless": {},
    "nulls": dict.fromkeys(("name", "env", "volumeMounts", "lifecycle", "command", "args")),
    "sleep": {**MODEL, "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}},
    "http-probe": {**MODEL, "readinessProbe": {"httpGet": {"port": "http"}}},
}


@pytest.mark.parametrize("container", REPORTED.values(), ids=REPORTED.keys())
@pytest.mark.parametrize("mode", ["auto", "wrap", "hook", "runtime", "mount"])
def test_unusual_containers_give_a_result_or_a_rejection(container: Object, mode: str) -> None:
    annotations = {"asya.sh/handler": "a.b", "asya.sh/mode": mode}
    metadata = {"name": "p", "annotations": annotations}
    item = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    check_commands(json.dumps(item | {"spec": {"containers": [container]}}))


@pytest.mark.parametrize(
    "name", ["\\ud800", "\\udfff\\ud800", "\\u0000", "\\u001b[2J", "\\ufeff", "\\ud83d\\ude00"]
)
def test_any_text_in_json_gives_a_result_or_a_rejection(name: str) -> None:
    metadata = f'{{"name": "{name}", "annotations": {{"asya.sh/handler": "a.b", "x": "{name}"}}}}'
    container = f'{{"name": "m", "env": [{{"name": "{name}", "value": "{name}"}}]}}'
    check_commands(
        f'{{"apiVersion": "v1", "kind": "Pod", "metadata": {metadata}, '
        f'"spec": {{"containers": [{container}]}}}}'
    )
