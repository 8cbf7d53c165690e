"""`make bench-models`: two models behind the runtime and behind model servers.

docs/benchmarks.md describes the method.
"""

import argparse
import base64
import contextlib
import json
import os
import platform
import random
import socket
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bench import inference
from bench.clients import build_message, http_post
from bench.contenders import FRAMES, HTTP, RUNTIME, RUNTIME_LABEL, SERVERS
from bench.pipelines import Address, drive, split_in_flight
from bench.processes import accepts, cpu_seconds, process_tree, running, until_interrupted
from bench.results import Goal, Results, describe_run, draw_bars, publish, short
from bench.runtime import duration, percentile
from tests.support.tables import Table

FOREST, MAGIKA, ECHO = "forest", "magika", "echo"
IN_FLIGHT = (1, 32, 128)
ECHO_IN_FLIGHT, ECHO_CONNECTIONS = 64, (1, 2, 4, 8)
FILES = (  # repeated; N is a number
    "def f_N(x):\n    return [x + N for _ in range(N)]\n\n",
    '{"id": N, "name": "item N", "tags": ["a", "b"]}\n',
    "<div class='item'><p>Item N</p><a href='/items/N'>more</a></div>\n",
    "#include <stdio.h>\nstatic int f_N(int x) { return x + N; }\n",
    "INSERT INTO items (id, name) VALUES (N, 'item N');\n",
    "N,item N,3.N,yes\n",
)
INPUTS = 96  # different ones; no multiple of what is in flight


class Server(NamedTuple):
    """`{address}` in command and environment stands for the path of a socket, or a port.

    is_list: inputs and results are in lists of one.
    """

    label: str
    command: tuple[str, ...]
    protocol: str = HTTP
    environment: Mapping[str, str] = {}
    is_list: bool = False

    def reply(self, result: Any) -> Any:
        if self.protocol == FRAMES:
            return {"status": "ok", "result": result}
        return [result] if self.is_list else {"output": result}


def _runtime(batch_size: int) -> Server:
    handler = "predict_batch" if batch_size > 1 else "predict"
    environment = {
        "ASYA_HANDLER": f"model_handlers.{handler}",
        "ASYA_BATCH_SIZE": str(batch_size),
        "ASYA_SOCKET_PATH": "{address}",
    }
    label = f"{RUNTIME_LABEL}, batch {batch_size}"
    return Server(label, (sys.executable, str(RUNTIME)), FRAMES, environment)


def _litserve(batch_size: int) -> Server:
    script = (sys.executable, "litserve_model.py", "{address}", str(batch_size))
    return Server(f"LitServe, batch {batch_size}", script)


def _module(words: str) -> tuple[str, ...]:
    return (sys.executable, "-m", *words.split())


ONE, EIGHT, MANY = _runtime(1), _runtime(8), _runtime(32)
_UVICORN = "uvicorn --port {address} --no-access-log --log-level error fastapi_model:app"
_BENTOML = "bentoml serve bentoml_model:Service --host 127.0.0.1 --port {address}"
PEERS = (
    Server("FastAPI, one at a time", _module(_UVICORN)),
    _litserve(32),
    _litserve(128),
    Server(
        "BentoML, adaptive batch",
        _module(_BENTOML),
        environment={"BENTOML_DO_NOT_TRACK": "true"},
        is_list=True,
    ),
)


class Figures(NamedTuple):
    """Items a second and a second of the server's CPU: medians of the rounds; seconds."""

    rate: float
    cpu_rate: float
    p50: float
    p99: float


Cells = dict[tuple[str, str], Figures]  # by load and server


class Load(NamedTuple):
    """So many requests in flight, on so many connections; 0: as the protocol likes best."""

    label: str
    in_flight: int
    connections: int = 0


def build_inputs(model: str) -> list[Any]:
    """The same inputs in each run: rows of the forest, files as base64, or texts."""
    generator = random.Random(0)
    if model == FOREST:
        return [[round(generator.gauss(0, 2), 4) for _ in range(30)] for _ in range(INPUTS)]
    if model == ECHO:
        text = json.loads(build_message(1 << 10))["payload"]["text"]
        return [text[n:] + text[:n] for n in range(INPUTS)]
    files = [(FILES[n % len(FILES)].replace("N", str(n)) * 100)[:2048] for n in range(INPUTS)]
    return [base64.b64encode(text.encode()).decode() for text in files]


def build_request(server: Server, model: str, value: Any) -> bytes:
    """The bytes that a client sends for an input."""
    if server.protocol == FRAMES:
        body = json.dumps({"payload": {"input": value}}).encode()
        return len(body).to_bytes(4, "big") + body
    if server.label.startswith("FastAPI") and model == MAGIKA:
        return http_post("/identify", base64.b64decode(value))
    message = {"inputs": [value]} if server.is_list else {"input": value}
    return http_post("/predict", json.dumps(message).encode())


class Running(NamedTuple):
    """A server that answers: all its processes, and what its clients send and expect."""

    server: Server
    address: Address
    pids: list[int]
    requests: list[bytes]
    expected: list[Any]

    def drive(self, load: Load, span: float) -> tuple[float, float, list[float]]:
        """Seconds, seconds of CPU of all its processes, and latencies."""

        depths = split_in_flight(self.server.protocol, load.in_flight)
        if load.connections:
            depths = [load.in_flight // load.connections] * load.connections
        before = sum(map(cpu_seconds, self.pids))
        seconds, latencies = drive(
            self.server.protocol, self.address, self.requests, self.expected, depths, span
        )
        return seconds, sum(map(cpu_seconds, self.pids)) - before, latencies


@contextlib.contextmanager
def serving(
    server: Server, model: str, forest: str, inputs: Sequence[Any], results: Sequence[Any]
) -> Iterator[Running]:
    """Run a server until it has answered each input as the model itself does."""
    with tempfile.TemporaryDirectory() as directory:
        address: Address = f"{directory}/socket"
        if server.protocol == HTTP:
            with socket.create_server(("127.0.0.1", 0)) as free:
                address = free.getsockname()
        name = address if isinstance(address, str) else str(address[1])
        environment = {"MODEL": model, "FOREST": forest, "BENTOML_HOME": directory}
        environment["PYTHONPATH"] = str(SERVERS.parents[1])
        environment |= server.environment
        environment = {key: text.replace("{address}", name) for key, text in environment.items()}
        command = [word.replace("{address}", name) for word in server.command]
        with running(command, environment, lambda: accepts(address), server.label) as (pid, _):
            expected = [server.reply(result) for result in results]
            requests = [build_request(server, model, value) for value in inputs]
            first = Running(server, address, [], requests, expected)
            first.drive(Load("", INPUTS // 3), 0.5)  # may start processes
            yield first._replace(pids=process_tree(pid))


def measure(
    model: str, servers: Sequence[Server], loads: Sequence[Load], rounds: int, span: float
) -> Cells:
    """All servers run at the same time, and are measured in turns."""
    print(f"models: {model}", file=sys.stderr, flush=True)
    rates, cpu_rates = defaultdict[tuple[str, str], list[float]](list), defaultdict(list)
    latencies = defaultdict[tuple[str, str], list[float]](list)
    inputs = build_inputs(model)
    with contextlib.ExitStack() as stack:
        forest = f"{stack.enter_context(tempfile.TemporaryDirectory())}/forest"
        inference.train_forest(forest)
        results = inference.load(model, forest)(inputs)
        all_running = [
            stack.enter_context(serving(server, model, forest, inputs, results))
            for server in servers
        ]
        for number in range(rounds):
            for load in loads:
                for one in all_running if number % 2 else reversed(all_running):
                    seconds, cpu, taken = one.drive(load, span)
                    key = load.label, one.server.label
                    rates[key].append(len(taken) / seconds)
                    cpu_rates[key].append(len(taken) / cpu)
                    latencies[key] += taken
    return {
        key: Figures(
            statistics.median(rates[key]),
            statistics.median(cpu_rates[key]),
            percentile(latencies[key], 50),
            percentile(latencies[key], 99),
        )
        for key in rates
    }


def table(title: str, cells: Cells) -> Table:
    loads, labels = (list(dict.fromkeys(key[part] for key in cells)) for part in (0, 1))
    rows = [["", *(text for load in loads for text in (load, "p50, p99", "per CPU-second"))]]
    for label in sorted(labels, key=lambda label: not label.startswith(RUNTIME_LABEL)):
        row = [label]
        for load in loads:
            one = cells[load, label]
            latency = f"{duration(one.p50)}, {duration(one.p99)}"
            row += [f"{short(one.rate)}/s", latency, short(one.cpu_rate)]
        rows.append(row)
    return Table(rows, f"{title}: items a second, latency, items per second of the server's CPU")


def best(cells: Cells, *servers: Server) -> float:
    """The most items per second of CPU that one of the servers reaches under any load."""
    labels = {server.label for server in servers}
    return max(one.cpu_rate for (_, label), one in cells.items() if label in labels)


def model_goals(forest: Cells, magika: Cells, echo: Cells) -> list[Goal]:
    text = "items per CPU-second"
    ours, gain = best(forest, MANY), best(forest, MANY) / best(forest, ONE)
    runtimes = best(magika, ONE, EIGHT, MANY)
    worst = min(
        one.cpu_rate / echo[load, ONE.label].cpu_rate
        for (load, label), one in echo.items()
        if label == MANY.label
    )
    return [
        Goal(f"forest, {text}, batch 32 × batch 1", gain, 15, at_least=True),
        Goal(
            f"forest, {text}, batch 32 × best peer", ours / best(forest, *PEERS), 2, at_least=True
        ),
        Goal(f"magika, {text}, × best peer", runtimes / best(magika, *PEERS), 1.1, at_least=True),
        Goal(f"1 KB echo, {text}, batch 32 × batch 1, at least", worst, 1.5, at_least=True),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.models", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one short round: do all answer?")
    parser.add_argument("--docs", action="store_true", help="also write the documentation")
    options = parser.parse_args()
    if options.docs and options.quick:
        parser.error("--docs needs all figures: leave out --quick")
    rounds, span = (1, 0.3) if options.quick else (3, 1.0)
    os.environ["PYTHONWARNINGS"] = "ignore"
    introduction = describe_run(f"Python {platform.python_version()}")
    loads = [Load(f"{number} in flight", number) for number in IN_FLIGHT]
    servers = (ONE, EIGHT, MANY, *PEERS)
    forest, magika = (measure(model, servers, loads, rounds, span) for model in (FOREST, MAGIKA))
    echoes = [Load(f"connections: {number}", ECHO_IN_FLIGHT, number) for number in ECHO_CONNECTIONS]
    echo = measure(ECHO, (ONE, MANY), echoes, 5 * rounds, span / 5)
    results = Results(
        [
            table("Random forest of 100 trees", forest),
            table("magika", magika),
            table(f"Echo of 1 KB, {ECHO_IN_FLIGHT} in flight", echo),
        ],
        model_goals(forest, magika, echo),
    )
    bars = {
        title: {server.label: best(cells, server) for server in servers}
        for title, cells in (("random forest", forest), ("magika", magika))
    }
    title = "Items per second of the server's CPU, at its best load (longer is better)"
    results.picture = draw_bars(title, bars, RUNTIME_LABEL)
    publish("benchmarks-models", introduction, results, docs=options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(until_interrupted(main))
