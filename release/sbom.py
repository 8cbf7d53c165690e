"""Software bills of materials in CycloneDX format, with equal bytes for equal content."""

from __future__ import annotations

import datetime as dt
import json
import re
import tarfile
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from email.parser import Parser
from pathlib import Path
from typing import Any

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

_NAMESPACE = uuid.UUID("6e1c3b1e-3b0a-5a0c-9f53-0c5e3a8d8f10")


@dataclass
class Contents:
    """What an image holds: Python packages, Debian packages, and another Python's version."""

    python: dict[str, str] = field(default_factory=dict)
    debian: dict[str, str] = field(default_factory=dict)
    interpreter: str = ""


def read_image(saved: Path) -> Contents:
    """The contents of an image that Docker has saved."""
    contents = Contents()
    with tarfile.open(saved) as archive:
        (listed,) = _load(archive, "manifest.json")
        config = _load(archive, listed["Config"])["config"]
        for name in listed["Layers"]:
            stream = archive.extractfile(name)
            with tarfile.open(fileobj=stream) as layer:
                for entry in layer:
                    if entry.name.removeprefix("./") == "var/lib/dpkg/status":
                        contents.debian = dict(read_dpkg_status(_text(layer, entry)))
                    elif re.search(r"/site-packages/[^/]+\.dist-info/METADATA$", entry.name):
                        about = Parser().parsestr(_text(layer, entry), headersonly=True)
                        contents.python[about["Name"]] = about["Version"]
    environment = dict(each.split("=", 1) for each in config["Env"])
    contents.interpreter = environment.get("PYTHON_VERSION", "")
    return contents


def read_dpkg_status(status: str) -> Iterator[tuple[str, str]]:
    """Name and version of each installed Debian package."""
    for paragraph in status.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status|Version): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            yield fields["Package"], fields["Version"]


def read_requirements(text: str) -> dict[str, str]:
    """The pinned packages of a requirements file."""
    return dict(re.findall(r"^([\w.-]+)==([\w.+!-]+)", text, re.MULTILINE))


def components(contents: Contents, *, architecture: str = "") -> Iterator[Component]:
    """The components of an image or of a package."""
    for name, version in contents.python.items():
        yield _component(PackageURL("pypi", None, name.lower().replace("_", "-"), version))
    for name, version in contents.debian.items():
        yield _component(PackageURL("deb", "debian", name, version, {"arch": architecture}))
    if contents.interpreter:
        yield _component(PackageURL("generic", None, "python", contents.interpreter))


def write(
    path: Path,
    subject: Component,
    parts: Iterable[Component],
    *,
    epoch: int,
) -> None:
    """Write the bill of materials of a subject; raises ValueError if it breaks the schema."""
    bom = Bom(components=parts)
    bom.metadata.component = subject
    bom.metadata.timestamp = dt.datetime.fromtimestamp(epoch, dt.UTC)
    bom.serial_number = uuid.uuid5(_NAMESPACE, str(subject.bom_ref.value))
    bom.register_dependency(subject, bom.components)
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem:
        raise ValueError(f"{path.name}: {problem}")
    path.write_text(json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n")


def image_subject(repository: str, version: str, digest: str) -> Component:
    """An image as the subject of a bill of materials."""
    name = repository.rpartition("/")[2]
    url = PackageURL("oci", None, name, digest, {"repository_url": repository, "tag": version})
    return _subject(ComponentType.CONTAINER, url, version, digest.removeprefix("sha256:"))


def package_subject(name: str, version: str, sha256: str) -> Component:
    """A Python package as the subject of a bill of materials."""
    return _subject(
        ComponentType.APPLICATION, PackageURL("pypi", None, name, version), version, sha256
    )


def _subject(kind: ComponentType, url: PackageURL, version: str, sha256: str) -> Component:
    return Component(
        type=kind,
        name=url.name,
        version=version,
        purl=url,
        bom_ref=url.to_string(),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
    )


def _component(url: PackageURL) -> Component:
    return Component(
        type=ComponentType.LIBRARY,
        name=url.name,
        version=url.version,
        purl=url,
        bom_ref=url.to_string(),
    )


def _load(archive: tarfile.TarFile, name: str) -> Any:
    return json.loads(_text(archive, archive.getmember(name)))


def _text(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> str:
    stream = archive.extractfile(entry)
    assert stream
    return stream.read().decode()
