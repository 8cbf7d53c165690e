"""The injector's image as an OCI layout with equal bytes for equal sources.

Docker builds the image by injector/Dockerfile, as for the tests. What depends on the moment of the
build is removed from it afterwards: times, the order in layers, names of build containers.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from release import archives

Json = dict[str, Any]
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_INDEX = "application/vnd.oci.image.index.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
# What the image does, of all that Docker writes into its configuration.
_KEPT = ("User", "Env", "Entrypoint", "Cmd", "WorkingDir", "ExposedPorts", "StopSignal")


@dataclass(frozen=True)
class Build:
    """An image that Docker has built and saved.

    base: layers of the base image, by the digest of their content. published: a registry has them
    too, so that they are not changed.
    """

    platform: str
    saved: Path
    base: frozenset[str] = frozenset()
    published: bool = False


def write_layout(builds: list[Build], layout: Path, *, epoch: int, about: Mapping[str, str]) -> str:
    """Write an index of the images into an empty folder; returns the digest of the index.

    about: annotations and labels, such as the version.
    """
    (layout / "blobs/sha256").mkdir(parents=True)
    manifests = [_write_image(build, layout, epoch, about) for build in builds]
    index = _to_bytes({
        "schemaVersion": 2,
        "mediaType": _INDEX,
        "manifests": manifests,
        "annotations": dict(about),
    })  # fmt: skip
    (layout / "index.json").write_bytes(index)
    (layout / "oci-layout").write_bytes(_to_bytes({"imageLayoutVersion": "1.0.0"}))
    return _digest(index)


def _write_image(build: Build, layout: Path, epoch: int, about: Mapping[str, str]) -> Json:
    """Write one image; returns its descriptor."""
    with tarfile.open(build.saved) as saved:
        (listed,) = _read_json(saved, "manifest.json")
        old = _read_json(saved, listed["Config"])
        layers = [
            _write_layer(
                saved,
                name,
                layout,
                epoch,
                is_base=digest in build.base,
                published=digest in build.base and build.published,
            )
            for name, digest in zip(listed["Layers"], old["rootfs"]["diff_ids"], strict=True)
        ]
    os, _, architecture = build.platform.partition("/")
    config = {
        "created": _rfc3339(epoch),
        "architecture": architecture,
        "os": os,
        "config": {key: old["config"][key] for key in _KEPT if old["config"].get(key)}
        | {"Labels": dict(about)},
        "rootfs": {"type": "layers", "diff_ids": [digest for digest, _ in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": _write_blob(_to_bytes(config), layout, _CONFIG),
        "layers": [descriptor for _, descriptor in layers],
        "annotations": dict(about),
    }
    descriptor = _write_blob(_to_bytes(manifest), layout, _MANIFEST)
    return descriptor | {"platform": {"architecture": architecture, "os": os}}


def _write_layer(
    saved: tarfile.TarFile,
    name: str,
    layout: Path,
    epoch: int,
    *,
    is_base: bool,
    published: bool,
) -> tuple[str, Json]:
    """Write a layer; returns the digest of its content and its descriptor."""
    with _open(saved, name) as stream, tempfile.TemporaryFile() as plain:
        if published:
            shutil.copyfileobj(stream, plain)
        else:
            # The base image's compiled files refer to the times of others.
            archives.normalize(stream, plain, epoch=epoch, exact=not is_base)
        plain.seek(0)
        content = hashlib.file_digest(plain, "sha256").hexdigest()
        plain.seek(0)
        temporary = layout / "blobs/sha256/layer.tmp"
        with temporary.open("wb") as target:
            archives.compress(plain, target)
    digest = archives.sha256(temporary)
    path = temporary.replace(temporary.with_name(digest))
    descriptor = {"mediaType": _LAYER, "digest": f"sha256:{digest}", "size": path.stat().st_size}
    return f"sha256:{content}", descriptor


def _write_blob(content: bytes, layout: Path, kind: str) -> Json:
    digest = _digest(content)
    (layout / "blobs/sha256" / digest.removeprefix("sha256:")).write_bytes(content)
    return {"mediaType": kind, "digest": digest, "size": len(content)}


def _read_json(archive: tarfile.TarFile, name: str) -> Any:
    with _open(archive, name) as stream:
        return json.load(stream)


def _open(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    stream = archive.extractfile(name)
    if stream is None:
        raise ValueError(f"{name} is not a file of the saved image")
    return stream


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _to_bytes(value: Json) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _rfc3339(epoch: int) -> str:
    import datetime as dt

    return dt.datetime.fromtimestamp(epoch, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
