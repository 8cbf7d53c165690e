"""Results of a run: goals, the picture, and where they are published."""

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from xml.sax.saxutils import escape

from tests.support.tables import Table, find_page, write_section

BAR, GAP, LABELS, TOP = 14, 6, 180, 60
OURS, OTHERS, INK = "#1f6feb", "#a8b3bf", "#24292f"


class Goal(NamedTuple):
    """A bound that a figure has to keep: at most, or at least."""

    text: str
    value: float
    bound: float
    unit: str = ""
    at_least: bool = False

    def row(self) -> list[str]:
        is_met = self.value >= self.bound if self.at_least else self.value <= self.bound
        text = f"{self.text} {'≥' if self.at_least else '≤'} {self.bound:g}{self.unit}"
        return [text, f"{self.value:.4g}{self.unit}", "met" if is_met else "missed"]


def describe_run(version: str) -> str:
    """When and where a run is measured, and whether the machine is busy; call it at the start."""
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    line = f"{time.strftime('%Y-%m-%d', time.gmtime())}, {machine}, {version}."
    if (load := os.getloadavg()[0]) > 0.5:
        line += f" The machine was busy: its load average was {load:.1f} at the start."
        line += " Rates and p99 suffer from that, ratios less, CPU times least."
    return line


@dataclass
class Results:
    """What a run has measured; the picture is an SVG."""

    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    picture: str = ""


def publish(section: str, introduction: str, results: Results, *, docs: bool) -> None:
    """Print all tables; with `docs`, write them and the picture to the page of the section."""
    goals = Table([["goal", "seen", ""], *(goal.row() for goal in results.goals)], "Goals")
    tables = [*results.tables, goals]
    print("\n".join(["", introduction, *(line for table in tables for line in table.as_text())]))
    if docs:
        lines = [introduction, *(line for table in tables for line in table.as_markdown())]
        write_section(section, lines)
    if docs and results.picture:
        find_page(section).with_name(f"{section}.svg").write_text(results.picture)


def draw_bars(title: str, bars: Mapping[str, Mapping[str, float]], highlight: str) -> str:
    """An SVG of horizontal bars by panel and label; labels with `highlight` are coloured."""
    labels = list(next(iter(bars.values())))
    panel_width = 460 if len(bars) == 1 else 200
    height, width = TOP + len(labels) * (BAR + GAP) + GAP, LABELS + len(bars) * panel_width + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(10, 20, title),
    ]
    tops = {label: TOP + index * (BAR + GAP) for index, label in enumerate(labels)}
    parts += [_text(10, y + 11, label) for label, y in tops.items()]
    for column, (heading, values) in enumerate(bars.items()):
        left = LABELS + column * panel_width
        parts.append(_text(left, 46, heading))
        for label, value in values.items():
            y, length = tops[label], value * (panel_width - 60) / max(values.values())
            colour = OURS if highlight in label else OTHERS
            size = f'width="{length:.1f}" height="{BAR}"'
            parts.append(f'<rect x="{left}" y="{y}" {size} fill="{colour}"/>')
            parts.append(_text(left + length + 4, y + 11, f"{value:.3g}"))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="{INK}">{escape(words)}</text>'


def short(value: float) -> str:
    """A rate with about three digits."""
    if value >= 10000:
        return f"{value / 1000:.1f}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
