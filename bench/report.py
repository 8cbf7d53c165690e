"""Results as tables: on the terminal, and in docs/benchmarks.md between its two marks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import picture
from bench.contenders import BASE, BASE_FOR_MANY, BY_NAME, CONTENDERS
from bench.load import ASCII, SITUATIONS

KB, MB = 1 << 10, 1 << 20
DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
Result = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A table whose first column is text and whose others are numbers."""

    title: str
    rows: list[list[str]]  # the first is the header

    def as_text(self) -> list[str]:
        """Its lines for a terminal, without the title."""
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        lines = []
        for row in self.rows:
            first, *others = (
                cell.ljust(width) if index == 0 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            lines.append("  ".join(["", first, *others]))
        return lines

    def as_markdown(self) -> list[str]:
        """Its lines for the documentation, without the title."""
        header, *rows = self.rows
        ruler = "| --- |" + " ---: |" * (len(header) - 1)
        return [f"| {' | '.join(header)} |", ruler, *(f"| {' | '.join(row)} |" for row in rows)]


def as_text(result: Result) -> str:
    """All tables for a terminal."""
    lines = ["", introduction(result)]
    for table in tables(result):
        lines += ["", table.title, *table.as_text()]
    return "\n".join(lines)


def as_markdown(result: Result) -> str:
    """The same for the documentation."""
    lines = [introduction(result)]
    for table in tables(result):
        lines += ["", f"**{table.title}**", "", *table.as_markdown()]
    return "\n".join(lines)


def write_docs(result: Result) -> None:
    """Replace what stands between the marks, and the picture."""
    page = DOCS / "benchmarks.md"
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{as_markdown(result)}\n{END}{after}")
    (DOCS / "benchmarks.svg").write_text(picture.draw(result["runtime"]["trips"]))


def introduction(result: Result) -> str:
    """When and where; and whether the machine was quiet."""
    python = result.get("runtime", {}).get("python")
    words = [result["date"], result["machine"], *([f"Python {python}"] if python else [])]
    line = ", ".join(words) + "."
    if result["others"] > 0.05:
        line += (
            f" Other programs took {100 * result['others']:.0f} % of the machine's time:"
            " rates and p99 suffer, ratios less, CPU least."
        )
    return line


def tables(result: Result) -> Iterator[Table]:
    """All that was measured."""
    if "runtime" in result:
        trips = result["runtime"]["trips"]
        for message in sorted({_message(trip) for trip in trips}):
            yield round_trips([trip for trip in trips if _message(trip) == message])
        yield starts(result["runtime"])
    if "injector" in result:
        yield grid(result["injector"]["grid"])
        yield reviews(result["injector"]["reviews"])
        if "memory" in result["injector"]:
            yield memory(result["injector"]["memory"])
    yield goals(result)


def _message(trip: Result) -> tuple[int, str]:
    return trip["size"], trip["text"]


def round_trips(trips: list[Result]) -> Table:
    """Of everyone, for one message."""
    present = [key for key in SITUATIONS if any(key == _situation(trip) for trip in trips)]
    cells = {(_situation(trip), _row(trip["server"])): trip for trip in trips}
    rows = [["", *(SITUATIONS[key] for key in present), "server's CPU"]]
    for contender in CONTENDERS:
        if contender.name == BASE_FOR_MANY:
            continue
        row = [contender.label]
        for key in present:
            trip = cells.get((key, contender.name))
            row.append(
                f"{short(trip['rate'])}/s ×{trip['ratio']:.2f}, {seconds(trip['p99_us'])}"
                if trip
                else "-"  # time was up
            )
        trip = cells.get((present[0], contender.name))
        row.append(f"{seconds(trip['cpu_us'])} ×{trip['cpu_ratio']:.2f}" if trip else "-")
        rows.append(row)
    size, kind = _message(trips[0])
    title = bytes_(size) if kind == ASCII else f"{bytes_(size)} of {kind}"
    rates = "messages a second, × the bare echo, p99; CPU per message of 1 client"
    return Table(f"{title}: {rates}", rows)


def _situation(trip: Result) -> tuple[int, bool, bool]:
    return trip["clients"], trip["kept"], trip["together"]


def _row(server: str) -> str:
    return BASE if server == BASE_FOR_MANY else server


def starts(runtime: Result) -> Table:
    sizes = sorted({peak["size"] for peak in runtime["peaks"]})
    peaks = {(peak["server"], peak["size"]): peak["times"] for peak in runtime["peaks"]}
    rows = [["", "start", "its CPU", "memory", *(f"peak, {bytes_(size)}" for size in sizes)]]
    rows += [
        [
            BY_NAME[start["server"]].label,
            f"{start['start_ms']:.0f} ms",
            f"{start['start_cpu_ms']:.0f} ms",
            f"{start['memory_mb']:.1f} MB",
            *(f"×{peaks[start['server'], size]:.2f}" for size in sizes),
        ]
        for start in runtime["starts"]
    ]
    title = "Start to accepting and memory, above a bare interpreter; peak memory above idle, "
    return Table(title + "in sizes of the message", rows)


def grid(cells: list[Result]) -> Table:
    rows = [["containers × variables", "p50", "p99", "CPU p50", "CPU p99"]]
    for cell in cells:
        names = ("p50_ms", "p99_ms", "cpu_p50_ms", "cpu_p99_ms")
        row = [f"{cell['containers']} × {cell['variables']}"]
        rows.append([*row, *(f"{cell[name]:.2f} ms" for name in names)])
    return Table("The injector's function for one pod", rows)


def reviews(seen: list[Result]) -> Table:
    labels = {"empty": "kopf, empty handler", "injector": "injector"}
    rows = [["", "server's CPU", "× kopf", "p50", "p99"]]
    for one in seen:
        row = [labels[one["server"]], f"{one['cpu_ms']:.2f} ms", f"{one['ratio']:.2f}"]
        rows.append([*row, f"{one['p50_ms']:.2f} ms", f"{one['p99_ms']:.2f} ms"])
    return Table("One review through TLS", rows)


def memory(seen: list[Result]) -> Table:
    rows = [["after reviews", "resident"]]
    rows += [[f"{one['reviews']}", f"{one['memory_mb']:.1f} MB"] for one in seen]
    return Table("The injector's memory, reviews from 1000 namespaces", rows)


def goals(result: Result) -> Table:
    """What the project holds itself to, of what this run has measured."""
    rows = [["goal", "seen", ""]]

    def goal(text: str, value: float, bound: float, *, most: bool = False, unit: str = "") -> None:
        met = value <= bound if most else value >= bound
        sign = "≤" if most else "≥"
        seen = f"{value:.2f}{unit}"
        rows.append([f"{text} {sign} {bound:g}{unit}", seen, "met" if met else "missed"])

    if "runtime" in result:
        _runtime_goals(result["runtime"], goal)
    for cell in result.get("injector", {}).get("grid", []):
        size = cell["containers"], cell["variables"]
        if size in ((1, 5), (100, 60)):
            text = f"injector's function, {size[0]} × {size[1]}, p99 of CPU"
            goal(text, cell["cpu_p99_ms"], 1 if size == (1, 5) else 10, most=True, unit=" ms")
    for one in result.get("injector", {}).get("reviews", []):
        if one["server"] == "injector":
            goal("CPU of a review, × kopf with an empty handler", one["ratio"], 1.3, most=True)
    seen = [one["memory_mb"] for one in result.get("injector", {}).get("memory", [])]
    if seen:
        goal("injector's memory after all reviews", seen[-1], 110, most=True, unit=" MB")
        # What leaks grows with reviews; what is only kept comes in the first half.
        growth = seen[-1] - seen[len(seen) // 2]
        goal("its growth in the second half", growth, 2, most=True, unit=" MB")
    return Table("Goals", rows)


def _runtime_goals(runtime: Result, goal: Any) -> None:
    trips = {
        (trip["size"], SITUATIONS[_situation(trip)], trip["server"]): trip
        for trip in runtime["trips"]
        if trip["text"] == ASCII
    }
    one, apart, _, many, _ = SITUATIONS.values()
    for size, bound in ((KB, 1.1), (64 * KB, 1.0), (MB, 1.0)):
        if (size, one, "asya") not in trips:
            continue  # time was up before its turn
        text = f"{bytes_(size)}, {one}, × bare echo"
        goal(text, trips[size, one, "asya"]["ratio"], bound)
        if size > KB:
            goal(f"{text}, orjson", trips[size, one, "asya-orjson"]["ratio"], 4)
    rates = {key: trip["rate"] for key, trip in trips.items()}
    faster = rates[KB, one, "asya"] / rates[KB, one, "uvicorn"]
    goal(f"{bytes_(KB)}, {one}, × uvicorn", faster, 4)
    goal(f"{bytes_(KB)}, {many}, × {apart}", rates[KB, many, "asya"] / rates[KB, apart, "asya"], 2)
    start = next(start for start in runtime["starts"] if start["server"] == "asya")
    goal("start above a bare interpreter", start["start_ms"], 60, most=True, unit=" ms")
    goal("memory above a bare interpreter", start["memory_mb"], 8, most=True, unit=" MB")
    for peak in runtime["peaks"]:
        if peak["server"] == "asya" and peak["size"] == 256 * MB:
            goal("peak memory for 256 MB, × its size", peak["times"], 3, most=True)


def bytes_(size: int) -> str:
    return f"{size // MB} MB" if size >= MB else f"{size // KB} KB"


def short(value: float) -> str:
    """Three digits are what such a figure is good for."""
    if value >= 10000:
        return f"{value / 1000:.1f}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def seconds(microseconds: float) -> str:
    for limit, unit in ((1e3, "µs"), (1e6, "ms")):
        if microseconds < limit:
            return f"{microseconds / limit * 1e3:.3g} {unit}"
    return f"{microseconds / 1e6:.3g} s"
