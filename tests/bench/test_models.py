"""The benchmark with models: what it sends, and how it judges what it has seen."""

import base64
import json

import pytest

from bench.models import (
    ECHO,
    EIGHT,
    FOREST,
    INPUTS,
    MAGIKA,
    MANY,
    ONE,
    PEERS,
    Cells,
    Figures,
    Server,
    best,
    build_inputs,
    build_request,
    model_goals,
    table,
)

FASTAPI, LITSERVE, BIG_LITSERVE, BENTOML = PEERS


@pytest.mark.parametrize(("model", "size"), [(FOREST, 240), (MAGIKA, 2732), (ECHO, 980)])
def test_inputs_differ_from_each_other_but_not_from_run_to_run(model: str, size: int) -> None:
    inputs = build_inputs(model)
    assert inputs == build_inputs(model)
    assert len({json.dumps(each) for each in inputs}) == INPUTS
    assert max(len(json.dumps(each)) for each in inputs) in range(size, size + 800)


@pytest.mark.parametrize(
    ("server", "model", "value", "head", "body"),
    [
        (MANY, FOREST, [1.5], b"\0\0\0\x1d", b'{"payload": {"input": [1.5]}}'),
        (FASTAPI, FOREST, [1.5], b"POST /predict ", b'{"input": [1.5]}'),
        (FASTAPI, MAGIKA, base64.b64encode(b"#!sh").decode(), b"POST /identify ", b"#!sh"),
        (LITSERVE, MAGIKA, "eA==", b"POST /predict ", b'{"input": "eA=="}'),
        (BENTOML, FOREST, [1.5], b"POST /predict ", b'{"inputs": [[1.5]]}'),
    ],
)
def test_each_server_gets_its_form_of_a_request(
    server: Server, model: str, value: object, head: bytes, body: bytes
) -> None:
    request = build_request(server, model, value)
    assert request.startswith(head)
    assert request.endswith(b"\n" + body if server.protocol == "http" else body)


def cells(**cpu_rates: list[tuple[Server, float]]) -> Cells:
    return {
        (load, server.label): Figures(2 * rate, rate, 0.001, 0.02)
        for load, rates in cpu_rates.items()
        for server, rate in rates
    }


def test_goals_compare_each_at_its_best_load() -> None:
    forest = cells(
        few=[(ONE, 90), (MANY, 100), (FASTAPI, 80), (BIG_LITSERVE, 10)],
        many=[(ONE, 100), (MANY, 1600), (FASTAPI, 70), (BIG_LITSERVE, 800)],
    )
    magika = cells(few=[(ONE, 110), (EIGHT, 120), (MANY, 90), (BENTOML, 100)])
    echo = cells(few=[(ONE, 10), (MANY, 20)], many=[(ONE, 10), (MANY, 14)])
    assert best(forest, ONE, FASTAPI) == 100
    goals = model_goals(forest, magika, echo)
    assert [(round(goal.value, 2), goal.row()[2]) for goal in goals] == [
        (16, "met"),
        (2, "met"),
        (1.2, "met"),
        (1.4, "missed"),
    ]


def test_the_runtime_is_above_its_peers_in_a_table() -> None:
    assert table("Forest", cells(few=[(FASTAPI, 80), (MANY, 1600)])).rows == [
        ["", "few", "p50, p99", "per CPU-second"],
        ["asya-runtime, batch 32", "3200/s", "1 ms, 20 ms", "1600"],
        ["FastAPI, one at a time", "160/s", "1 ms, 20 ms", "80.0"],
    ]
