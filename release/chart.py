"""The chart of a release: the chart in the sources, with an image by digest as its default."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

from release import archives


def package(
    source: Path,
    folder: Path,
    *,
    image: str,
    digest: str,
    annotations: dict[str, str],
    epoch: int,
) -> Path:
    """Package the chart into a folder; returns the archive.

    image: name without tag. annotations: more of Chart.yaml.
    """
    with tempfile.TemporaryDirectory() as temporary:
        stage = Path(temporary, "chart")
        shutil.copytree(source, stage)
        _complete(stage, image=image, digest=digest, annotations=annotations)
        subprocess.run(
            ["helm", "package", "--destination", folder, stage],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    (archive,) = folder.glob("*.tgz")
    archives.normalize_tgz(archive, epoch=epoch)
    return archive


def _complete(stage: Path, *, image: str, digest: str, annotations: dict[str, str]) -> None:
    """Write the image and the annotations into a copy of the chart."""
    values = stage / "values.yaml"
    # Those of `runtime.image` stay empty: it defaults to the injector's image.
    before, mark, text = values.read_text().partition("\ninjector:\n")
    for key, default in (("repository", image), ("digest", digest)):
        text, found = re.subn(rf'^( +{key}): ""$', rf"\1: {default}", text, flags=re.MULTILINE)
        if found != 1:
            raise ValueError(f'{values}: expected one line `{key}: ""` of injector, found {found}')
    values.write_text(before + mark + text)
    about = stage / "Chart.yaml"
    chart = yaml.safe_load(about.read_text())
    chart["annotations"] = chart.get("annotations", {}) | annotations
    about.write_text(yaml.safe_dump(chart, sort_keys=False, width=1000, allow_unicode=True))
