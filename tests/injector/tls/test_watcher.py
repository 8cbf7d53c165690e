"""What the listener shows, and how troubles in getting it are told."""

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
    CertificateDirectory,
    CertificatePair,
    CertWatcher,
    NotReadyError,
)

NAME = "asya-runtime.asya-system.svc"


def shown(*names: str, age: dt.timedelta = dt.timedelta()) -> CertificatePair:
    pair = create(list(names or [NAME]), now=dt.datetime.now(dt.UTC) - age)
    return CertificatePair(pair.certificate, pair.key)


@pytest.fixture
def watcher(tmp_path: Path) -> CertWatcher:
    directory = tmp_path / "private"
    directory.mkdir()
    return CertWatcher(directory, name=NAME)


def test_a_key_on_disk_can_be_read_by_its_owner_alone(watcher: CertWatcher, tmp_path: Path) -> None:
    pair = shown()
    watcher.load(pair)
    key = tmp_path / "private" / "tls.key"
    assert key.read_bytes() == pair.key
    assert oct(key.stat().st_mode & 0o777) == "0o600"


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        (CertificatePair(b"", b""), "cannot be read"),
        (CertificatePair(shown().certificate, b"x"), "cannot be read"),
        (
            CertificatePair(shown().certificate, shown().key),
            "the key does not belong to the certificate",
        ),
        (shown("elsewhere.svc"), f"the certificate is not for {NAME}, which the API server calls"),
        (shown("*.svc"), f"the certificate is not for {NAME}"),
    ],
)
def test_what_is_no_pair_for_the_service_is_not_shown(
    watcher: CertWatcher, pair: CertificatePair, text: str
) -> None:
    watcher.load(good := shown())
    expires = watcher.expires
    with pytest.raises(DamagedError, match=text):
        watcher.load(pair)
    assert watcher.expires == expires
    watcher.load(good)


def test_a_wildcard_is_for_the_service_too(watcher: CertWatcher) -> None:
    watcher.load(shown("*.asya-system.svc"))


def test_a_certificate_that_has_expired_is_told(
    watcher: CertWatcher, caplog: pytest.LogCaptureFixture
) -> None:
    watcher.load(shown(age=dt.timedelta(days=91)))
    assert "the certificate has expired, so the API server rejects it" in caplog.text


def test_the_end_that_is_told_is_that_of_the_pair_that_was_loaded_last(
    watcher: CertWatcher,
) -> None:
    for days in (30, 1):
        made = dt.datetime.now(dt.UTC).replace(microsecond=0) - dt.timedelta(days=days)
        pair = create([NAME], now=made)
        watcher.load(CertificatePair(pair.certificate, pair.key))
        assert watcher.expires == pair.expires == made + dt.timedelta(days=90)


def test_files_are_read_as_the_kubelet_exchanges_them(tmp_path: Path) -> None:
    mounted = tmp_path / "tls"
    mounted.mkdir()
    with pytest.raises(NotReadyError, match=r"tls\.crt: No such file or directory"):
        CertificateDirectory(mounted).read()
    for version in ("..1", "..2"):
        pair = shown()
        (mounted / version).mkdir()
        (mounted / version / "tls.crt").write_bytes(pair.certificate)
        (mounted / version / "tls.key").write_bytes(pair.key)
        (mounted / "..new").symlink_to(version)
        (mounted / "..new").rename(mounted / "..data")
        if version == "..1":
            (mounted / "tls.crt").symlink_to("..data/tls.crt")
            (mounted / "tls.key").symlink_to("..data/tls.key")
        assert CertificateDirectory(mounted).read() == pair


@contextlib.contextmanager
def no_superuser() -> Iterator[None]:
    """Root reads what nobody may; so it is nobody inside."""
    before = os.geteuid()
    os.seteuid(before or 65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "tls.crt").touch(mode=0o000)
    with no_superuser(), pytest.raises(NotReadyError, match=r"tls\.crt: Permission denied"):
        CertificateDirectory(tmp_path).read()


class Source:
    """Gives one thing after the other, then the last for ever; counts."""

    def __init__(self, *given: CertificatePair | Exception) -> None:
        self.given = list(given)
        self.calls = 0

    def __call__(self) -> CertificatePair:
        self.calls += 1
        now = self.given.pop(0) if len(self.given) > 1 else self.given[0]
        if isinstance(now, Exception):
            raise now
        return now


@contextlib.asynccontextmanager
async def kept(watcher: CertWatcher, source: Callable[[], CertificatePair]) -> AsyncIterator[None]:
    task = asyncio.create_task(watcher.watch(source, pause=0.01))
    try:
        async with asyncio.timeout(20):
            yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_troubles_are_told_once_each_and_what_is_shown_stays(
    watcher: CertWatcher, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "_FIRST_PAUSE", 0.001)
    caplog.set_level(logging.INFO)
    gone = ApiException(status=503, reason="Service Unavailable")
    other = NotReadyError("there is no MutatingWebhookConfiguration x")
    source = Source(
        gone, gone, gone, other, other, shown(), gone, gone, ZeroDivisionError(), shown()
    )
    async with kept(watcher, source):
        await watcher.ready.wait()
        while source.calls < 12:
            await asyncio.sleep(0.01)
    assert [
        (record.getMessage(), getattr(record, "error", ""), bool(record.exc_info))
        for record in caplog.records
    ] == [
        ("cannot check the certificate; retrying", said, traceback)
        if said
        else (message, "", False)
        for message, said, traceback in (
            ("", "503 Service Unavailable", False),
            ("", "there is no MutatingWebhookConfiguration x", False),
            ("certificate loaded", "", False),
            ("the certificate is valid again", "", False),
            ("", "503 Service Unavailable", False),
            ("", "ZeroDivisionError; see the log", True),
            ("certificate loaded", "", False),
            ("the certificate is valid again", "", False),
        )
    ]


async def test_until_there_is_a_certificate_it_says_what_is_waited_for(
    watcher: CertWatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher_module, "_FIRST_PAUSE", 0.001)
    source = Source(NotReadyError("/tls/tls.crt: No such file or directory"))
    async with kept(watcher, source):
        while source.calls < 2:
            await asyncio.sleep(0.01)
        assert not watcher.ready.is_set()
        assert watcher.missing == "/tls/tls.crt: No such file or directory"
