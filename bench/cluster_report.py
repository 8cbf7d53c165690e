"""Results of `make bench-cluster`: tables, the end of docs/benchmarks.md, and its picture."""

from __future__ import annotations

from typing import Any

import picture
from report import DOCS, Table, short

Result = dict[str, Any]
PAGE, PICTURE = DOCS / "benchmarks.md", DOCS / "benchmarks-cluster.svg"
BEGIN, END = "<!-- measured in a cluster: begin -->", "<!-- measured in a cluster: end -->"


def introduction(result: Result) -> str:
    line = f"{result['date']}, {result['machine']}, Kubernetes {result['kubernetes']}."
    if result["load"] > 1:
        line += (
            f" The machine was not quiet: {result['load']:.0f} programs wanted its cores at the"
            " beginning. Ratios suffer less than times."
        )
    return line


def tables(result: Result) -> list[Table]:
    return [creation(result), injector(result), goals(result)]


def creation(result: Result) -> Table:
    rows = [
        ["", "pods", "pods a second", "request p50", "request p99", "webhook p50", "webhook p99"]
    ]
    measured = {"without annotation": result["plain"], "injected": result["injected"]}
    for clients, burst in result["bursts"].items():
        measured[f"injected, 300 at once, {clients} clients"] = burst
    for label, one in measured.items():
        row = [label, str(one["count"]), short(one["rate"])]
        for of in ("request", "webhook"):
            called = one[of]["calls"]
            row += [f"{one[of][name]:.1f} ms" if called else "-" for name in ("p50_ms", "p99_ms")]
        rows.append(row)
    return Table("Creating pods, by the API server's own histograms", rows)


def injector(result: Result) -> Table:
    jobs = result["jobs"]
    rows = [
        ["", ""],
        ["time with injection, × without", f"{result['ratio']:.2f}"],
        ["CPU of all replicas, for each injected pod", f"{result['cpu_ms']:.1f} ms"],
        ["memory of a replica, idle", f"{result['memory_mb']['idle']:.0f} MB"],
        ["memory of a replica, at the end", f"{result['memory_mb']['end']:.0f} MB"],
        [f"{jobs['count']} annotated Jobs", f"{jobs['created'] / jobs['seconds']:.0f} a second"],
        ["ConfigMap copies after all of them", str(jobs["copies"])],
    ]
    return Table("The injector", rows)


def saturating(bursts: dict[int, Result]) -> int:
    """The fewest clients that create pods as fast (to a twentieth) as any number of them."""
    best = max(burst["rate"] for burst in bursts.values())
    return min(clients for clients, burst in bursts.items() if burst["rate"] >= 0.95 * best)


def goals(result: Result) -> Table:
    rows = [["goal", "seen", ""]]

    def goal(text: str, seen: float, bound: float, unit: str = "") -> None:
        words = [f"{text}: at most {bound:g}{unit}", f"{seen:.4g}{unit}"]
        rows.append([*words, "met" if seen <= bound else "missed"])

    bursts, jobs = result["bursts"], result["jobs"]
    every = list(bursts.values())
    goal("of the pods at once, refused", sum(each["refused"] for each in every), 0)
    partly = sum(each["bare"] + each["half"] for each in every)
    goal("of the pods at once, not wholly injected", partly, 0)
    clients = saturating(bursts)
    p99 = bursts[clients]["webhook"]["p99_ms"]
    goal(f"webhook p99 of 300 at once, {clients} clients", p99, 100, " ms")
    goal("pods without annotation that the webhook saw", result["plain"]["webhook"]["calls"], 0)
    goal(f"of {jobs['count']} Jobs, refused", jobs["count"] - jobs["created"], 0)
    goal("ConfigMap copies in their namespace", jobs["copies"], 1)
    goal("memory of a replica at the end", result["memory_mb"]["end"], 110, " MB")
    return Table("Goals", rows)


def as_text(result: Result) -> str:
    """All tables for a terminal."""
    lines = ["", introduction(result)]
    for table in tables(result):
        lines += ["", table.title, *table.as_text()]
    return "\n".join(lines)


def write_docs(result: Result) -> None:
    """Replace what stands between the page's marks, and the picture."""
    lines = [introduction(result)]
    for table in tables(result):
        lines += ["", f"**{table.title}**", "", *table.as_markdown()]
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text("\n".join([f"{before}{BEGIN}", *lines, f"{END}{after}"]))
    PICTURE.write_text(draw(result))


def draw(result: Result) -> str:
    """An SVG: what the API server needed for a pod, without injection and with it."""
    bars = [
        ("without annotation, p50", result["plain"]["request"]["p50_ms"], picture.THEIRS),
        ("injected, p50", result["injected"]["request"]["p50_ms"], picture.OURS),
        ("without annotation, p99", result["plain"]["request"]["p99_ms"], picture.THEIRS),
        ("injected, p99", result["injected"]["request"]["p99_ms"], picture.OURS),
        ("the webhook's part, p50", result["injected"]["webhook"]["p50_ms"], picture.OURS),
        ("the webhook's part, p99", result["injected"]["webhook"]["p99_ms"], picture.OURS),
    ]
    height, width = 50 + len(bars) * (picture.BAR + picture.GAP), 640
    scale = (width - 270) / max(value for _, value, _ in bars)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        picture.text(10, 20, "The API server's time to create a pod (shorter is better)"),
    ]
    for index, (label, value, colour) in enumerate(bars):
        y = 40 + index * (picture.BAR + picture.GAP)
        parts.append(picture.text(10, y + 11, label))
        bar = f'<rect x="180" y="{y}" width="{value * scale:.1f}" height="{picture.BAR}"'
        parts.append(f'{bar} fill="{colour}"/>')
        parts.append(picture.text(184 + value * scale, y + 11, f"{value:.1f} ms"))
    return "\n".join([*parts, "</svg>", ""])
