"""Refreshes the golden renderings of the chart.

Run as `make chart-render`, then look at the difference before committing it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.chart.charts import CASES, GOLDEN, case, copied, difference, objects, written


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.glob("*.yaml"):
        old.unlink()
    with tempfile.TemporaryDirectory() as directory:
        chart = copied(Path(directory))
        (GOLDEN / "defaults.yaml").write_text(case("defaults", chart))
        usual = objects(case("defaults", chart))
        for name in CASES.keys() - {"defaults"}:
            changes = difference(objects(case(name, chart)), usual)
            (GOLDEN / f"{name}.yaml").write_text(written(changes))


if __name__ == "__main__":
    main()
