"""Writes the golden renderings of the chart.

Run `make chart-render`, then review the changes before committing them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.chart.charts import (
    CASES,
    GOLDEN,
    case_objects,
    copy_chart,
    diff_objects,
    dump_golden,
    render_case,
)


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.glob("*.yaml"):
        old.unlink()
    with tempfile.TemporaryDirectory() as directory:
        chart = copy_chart(Path(directory))
        (GOLDEN / "defaults.yaml").write_text(render_case("defaults", chart))
        default = case_objects("defaults", chart)
        for name in CASES.keys() - {"defaults"}:
            changes = diff_objects(case_objects(name, chart), default)
            (GOLDEN / f"{name}.yaml").write_text(dump_golden(changes))


if __name__ == "__main__":
    main()
