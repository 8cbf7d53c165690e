"""The picture beside docs/benchmarks.md: bars, one panel for each message size."""

from __future__ import annotations

from typing import Any
from xml.sax.saxutils import escape

from bench.contenders import BASE, BY_NAME, CONTENDERS
from bench.load import ASCII

PANEL, LABELS, BAR, GAP = 200, 150, 14, 6
OURS, THEIRS, INK, PALE = "#1f6feb", "#a8b3bf", "#24292f", "#d8dee4"


def draw(trips: list[dict[str, Any]]) -> str:
    """An SVG of each server's rate as a multiple of the bare echo's: one client, kept."""
    plain = [trip for trip in trips if trip["text"] == ASCII]
    seen = [trip for trip in plain if trip["kept"] and trip["together"]]
    sizes = sorted({trip["size"] for trip in seen})
    names = [one.name for one in CONTENDERS if any(trip["server"] == one.name for trip in seen)]
    ratios = {(trip["server"], trip["size"]): trip["ratio"] for trip in seen}
    height, width = 60 + len(names) * (BAR + GAP) + 14, LABELS + len(sizes) * PANEL + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        text(10, 20, "Messages a second, as a multiple of a bare blocking echo (longer is better)"),
    ]
    rows = {name: 60 + index * (BAR + GAP) for index, name in enumerate(names)}
    parts += [text(10, y + 11, BY_NAME[name].label) for name, y in rows.items()]
    for column, size in enumerate(sizes):
        left = LABELS + column * PANEL + 10
        label = f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"
        scale = (PANEL - 60) / max(ratios[name, size] for name in names)
        one = left + scale
        parts.append(text(left, 46, label))
        parts.append(f'<path d="M{one:.1f} 54V{height - 14}" stroke="{PALE}"/>')
        for name, y in rows.items():
            ratio = ratios[name, size]
            colour = OURS if name.startswith("asya-") or name == "asya" else THEIRS
            if name == BASE:
                colour = INK
            bar = f'<rect x="{left}" y="{y}" width="{ratio * scale:.1f}" height="{BAR}"'
            parts.append(f'{bar} fill="{colour}"/>')
            parts.append(text(left + ratio * scale + 4, y + 11, f"{ratio:.2f}"))
    return "\n".join([*parts, "</svg>", ""])


def text(x: float, y: float, words: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="{INK}">{escape(words)}</text>'
