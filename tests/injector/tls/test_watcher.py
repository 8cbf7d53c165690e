"""The certificate that the server presents, and how failures to get one are logged."""

import asyncio
import contextlib
import datetime as dt
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from asya_injector.kube_client import ApiException
from asya_injector.tls import watcher as watcher_module
from asya_injector.tls.authority import DamagedError, create
from asya_injector.tls.watcher import (
    CertificatePair,
    CertWatcher,
    NotReadyError,
    read_directory,
)

NAME = "asya-runtime.asya-system.svc"


def make_pair(*names: str, age: dt.timedelta = dt.timedelta()) -> CertificatePair:
    pair = create(list(names or [NAME]), now=dt.datetime.now(dt.UTC) - age)
    return CertificatePair(pair.certificate, pair.key)


@pytest.fixture
def watcher(tmp_path: Path) -> CertWatcher:
    directory = tmp_path / "private"
    directory.mkdir()
    return CertWatcher(directory, name=NAME)


def test_only_the_owner_can_read_the_key_on_disk(watcher: CertWatcher, tmp_path: Path) -> None:
    pair = make_pair()
    watcher.load(pair)
    key = tmp_path / "private" / "tls.key"
    assert key.read_bytes() == pair.key
    assert oct(key.stat().st_mode & 0o777) == "0o600"


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        (CertificatePair(b"", b""), "cannot be read"),
        (CertificatePair(make_pair().certificate, b"x"), "cannot be read"),
        (
            CertificatePair(make_pair().certificate, make_pair().key),
            "the key does not belong to the certificate",
        ),
        (
            make_pair("elsewhere.svc"),
            f"the certificate is not for {NAME}, which the API server calls",
        ),
        (make_pair("*.svc"), f"the certificate is not for {NAME}"),
    ],
)
def test_rejects_a_pair_that_is_not_valid_for_the_service(
    watcher: CertWatcher, pair: CertificatePair, text: str
) -> None:
    watcher.load(good := make_pair())
    expires = watcher.expires
    with pytest.raises(DamagedError, match=text):
        watcher.load(pair)
    assert watcher.expires == expires
    watcher.load(good)


def test_accepts_a_wildcard_for_the_service(watcher: CertWatcher) -> None:
    watcher.load(make_pair("*.asya-system.svc"))


def test_logs_an_expired_certificate(
    watcher: CertWatcher, caplog: pytest.LogCaptureFixture
) -> None:
    watcher.load(make_pair(age=dt.timedelta(days=91)))
    assert "the certificate has expired, so the API server rejects it" in caplog.text


def test_expires_is_that_of_the_pair_loaded_last(
    watcher: CertWatcher,
) -> None:
    for days in (30, 1):
        issued = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(days=days)
        pair = create([NAME], now=issued)
        watcher.load(CertificatePair(pair.certificate, pair.key))
        assert watcher.expires == pair.expires == issued + dt.timedelta(days=90)


def test_reads_files_that_the_kubelet_replaces(tmp_path: Path) -> None:
    mounted = tmp_path / "tls"
    mounted.mkdir()
    with pytest.raises(NotReadyError, match=r"tls\.crt: No such file or directory"):
        read_directory(mounted)
    for version in ("..1", "..2"):
        pair = make_pair()
        (mounted / version).mkdir()
        (mounted / version / "tls.crt").write_bytes(pair.certificate)
        (mounted / version / "tls.key").write_bytes(pair.key)
        (mounted / "..new").symlink_to(version)
        (mounted / "..new").rename(mounted / "..data")
        if version == "..1":
            (mounted / "tls.crt").symlink_to("..data/tls.crt")
            (mounted / "tls.key").symlink_to("..data/tls.key")
        assert read_directory(mounted) == pair


def test_a_pair_that_is_replaced_between_two_reads_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [make_pair() for _ in range(2)]
    read_bytes = Path.read_bytes
    new = iter(pairs)

    def mount(pair: CertificatePair) -> None:
        for name, content in zip(("tls.crt", "tls.key"), pair, strict=True):
            (tmp_path / name).write_bytes(content)

    def read_then_replace(path: Path) -> bytes:
        content = read_bytes(path)
        if path.name == "tls.crt" and (pair := next(new, None)):
            mount(pair)
        return content

    mount(make_pair())
    monkeypatch.setattr(Path, "read_bytes", read_then_replace)
    assert read_directory(tmp_path) == pairs[-1]


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Inside, run as another user than root, who may read every file."""
    before = os.geteuid()
    os.seteuid(before or 65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_names_a_file_that_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "tls.crt").touch(mode=0o000)
    with unprivileged(), pytest.raises(NotReadyError, match=r"tls\.crt: Permission denied"):
        read_directory(tmp_path)


class Source:
    """Returns or raises one item after the other, then the last one repeatedly; counts."""

    def __init__(self, *items: CertificatePair | Exception) -> None:
        self.items = list(items)
        self.calls = 0

    def __call__(self) -> CertificatePair:
        self.calls += 1
        item = self.items.pop(0) if len(self.items) > 1 else self.items[0]
        if isinstance(item, Exception):
            raise item
        return item


@contextlib.asynccontextmanager
async def watching(
    watcher: CertWatcher, source: Callable[[], CertificatePair]
) -> AsyncIterator[None]:
    task = asyncio.create_task(watcher.watch(source, pause=0.01))
    try:
        async with asyncio.timeout(100):
            yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_logs_each_failure_once_and_keeps_the_certificate(
    watcher: CertWatcher, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "_FIRST_PAUSE", 0.001)
    caplog.set_level(logging.INFO)
    unavailable = ApiException(status=503, reason="Service Unavailable")
    not_found = NotReadyError("MutatingWebhookConfiguration x not found")
    source = Source(
        *(unavailable, unavailable, unavailable, not_found, not_found, make_pair()),
        *(unavailable, unavailable, ZeroDivisionError(), make_pair()),
    )
    async with watching(watcher, source):
        await watcher.ready.wait()
        while source.calls < 12:
            await asyncio.sleep(0.01)
    assert [
        (record.getMessage(), getattr(record, "error", ""), bool(record.exc_info))
        for record in caplog.records
    ] == [
        ("cannot check the certificate; retrying", error, traceback)
        if error
        else (message, "", False)
        for message, error, traceback in (
            ("", "503 Service Unavailable", False),
            ("", "MutatingWebhookConfiguration x not found", False),
            ("certificate loaded", "", False),
            ("the certificate is valid again", "", False),
            ("", "503 Service Unavailable", False),
            ("", "ZeroDivisionError; see the log", True),
            ("certificate loaded", "", False),
            ("the certificate is valid again", "", False),
        )
    ]


async def test_says_what_is_missing_until_a_certificate_is_loaded(
    watcher: CertWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "_FIRST_PAUSE", 0.001)
    source = Source(NotReadyError("/tls/tls.crt: No such file or directory"))
    async with watching(watcher, source):
        while source.calls < 2:
            await asyncio.sleep(0.01)
        assert not watcher.ready.is_set()
        assert watcher.missing == "/tls/tls.crt: No such file or directory"
