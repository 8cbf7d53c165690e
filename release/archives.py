"""Archives whose bytes depend on their content only: order, times and owners are fixed."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path
from typing import IO

_CHUNK = 1 << 20


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def normalize(source: IO[bytes], target: IO[bytes], *, epoch: int, exact: bool = True) -> None:
    """Copy a tar file: entries by name, without names of users and without other times.

    epoch: the modification time of all entries. exact: False keeps earlier times, which compiled
    Python files may refer to. Of entries with the same name, the last counts, as for `tar x`.
    """
    with (
        tarfile.open(fileobj=source, mode="r:*") as old,
        tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        entries = {entry.name: entry for entry in old}
        # A hard link must follow the file that it names.
        for entry in sorted(entries.values(), key=lambda each: (each.islnk(), each.name)):
            entry.uname = entry.gname = ""
            entry.mtime = epoch if exact else min(int(entry.mtime), epoch)
            kept = {key: text for key, text in entry.pax_headers.items() if "xattr" in key}
            entry.pax_headers = kept
            new.addfile(entry, old.extractfile(entry) if entry.isreg() else None)


def compress(source: IO[bytes], target: IO[bytes]) -> None:
    """Compress with gzip, without a time and a file name in its header."""
    with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=target, mtime=0) as stream:
        while chunk := source.read(_CHUNK):
            stream.write(chunk)


def normalize_tgz(path: Path, *, epoch: int) -> None:
    """Normalize a .tgz in place, and give the file itself the same time."""
    with path.open("rb") as source, io.BytesIO() as plain:
        normalize(source, plain, epoch=epoch)
        plain.seek(0)
        with path.with_suffix(".tmp").open("wb") as target:
            compress(plain, target)
    path.with_suffix(".tmp").replace(path)


def write_tar(folder: Path, target: IO[bytes], *, epoch: int, under: str = "") -> None:
    """Write the files of a folder as a tar file; the folders themselves are left out."""
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as new:
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            entry = tarfile.TarInfo(under + path.relative_to(folder).as_posix())
            entry.size = path.stat().st_size
            entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            entry.mtime = epoch
            with path.open("rb") as stream:
                new.addfile(entry, stream)
