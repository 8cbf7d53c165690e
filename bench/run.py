"""`make bench`: the runtime and the injector beside their peers, in one run.

    python bench/run.py [--quick] [--only runtime|injector] [--docs] [--python PATH]

Prints tables and writes build/bench.json; with --docs, docs/benchmarks.md and its picture too.
All traffic is on Unix sockets and 127.0.0.1. The quick form takes less than a minute on a quiet
machine, the full one less than ten.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import measure_injector, measure_memory, peers, report
from bench.load import WrongReply
from bench.processes import NotServing

HERE = Path(__file__).parent
OUTPUT = peers.ROOT / "build" / "bench.json"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench/run.py", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a part of it, in under a minute")
    parser.add_argument("--only", choices=("runtime", "injector"), help="one half of it")
    parser.add_argument("--docs", action="store_true", help="write docs/benchmarks.md too")
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter of the servers (default: this one)"
    )
    return parser.parse_args()


def measure_runtime(python: str, *, quick: bool) -> dict[str, Any]:
    """Run the runtime's half under the peers' interpreter, in a session that only we end."""
    interpreter = peers.install(python)
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "runtime.json"
        form = "quick" if quick else "full"
        child = subprocess.Popen(
            (interpreter, HERE / "measure_runtime.py", output, form), start_new_session=True
        )
        try:
            status = child.wait(timeout=180 if quick else 600)
        finally:
            child.terminate()  # it ends its servers
            child.wait(timeout=60)
        if status:
            raise NotServing("the runtime's half failed; see above")
        result: dict[str, Any] = json.loads(output.read_text())
        return result


class Meter:
    """How much of the machine's time went to programs that are not ours."""

    def __init__(self) -> None:
        self._before = self._readings()

    def share_of_others(self) -> float:
        """From 0 to 1, since this was made; counts processes of ours that have ended."""
        everything, busy, ours = (
            after - before for after, before in zip(self._readings(), self._before, strict=True)
        )
        return max(0.0, busy - ours) / everything

    @staticmethod
    def _readings() -> tuple[float, float, float]:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        ticks = [int(word) / os.sysconf("SC_CLK_TCK") for word in words]
        return sum(ticks), sum(ticks) - ticks[3] - ticks[4], sum(os.times()[:4])


def main() -> int:
    options = arguments()
    meter = Meter()
    result: dict[str, Any] = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "form": "quick" if options.quick else "full",
    }
    if options.only != "injector":
        result["runtime"] = measure_runtime(options.python, quick=options.quick)
    if options.only != "runtime":
        result["injector"] = measure_injector.measure(quick=options.quick)
        if not options.quick:
            print("the injector's memory", file=sys.stderr, flush=True)
            result["injector"]["memory"] = measure_memory.measure(reviews=10_000, namespaces=1_000)
    result["others"] = meter.share_of_others()
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(result, indent=1) + "\n")
    print(report.as_text(result))
    if options.docs:
        report.write_docs(result)
    return 0


def interrupt(*_: object) -> None:
    """Make SIGTERM what Ctrl-C is: every process started here is ended on the way out."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (NotServing, WrongReply, subprocess.SubprocessError) as problem:
        sys.exit(f"bench: {problem}")
