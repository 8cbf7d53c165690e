"""`make bench`: the runtime, its attachments, its probe and the injector beside their peers.

Prints tables; with --docs also writes them and the picture to the documentation. All traffic is on
Unix sockets and 127.0.0.1.
"""

import argparse
import platform
import sys

from bench import attachments, injector, probes, runtime
from bench.processes import until_interrupted
from bench.results import Results, describe_run, publish


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.run", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="measure a part, in under a minute")
    parts = {"runtime": runtime, "attachments": attachments, "probe": probes, "injector": injector}
    parser.add_argument("--only", choices=parts, help="measure one of them")
    parser.add_argument("--docs", action="store_true", help="also write the documentation")
    options = parser.parse_args()
    if options.docs and (options.quick or options.only):
        parser.error("--docs needs all figures: leave out --quick and --only")
    introduction = describe_run(f"Python {platform.python_version()}")
    results = Results()
    for name, part in parts.items():
        if options.only in (None, name):
            part.measure(results, quick=options.quick)
    publish("benchmarks", introduction, results, docs=options.docs)
    return 0


if __name__ == "__main__":
    sys.exit(until_interrupted(main))
