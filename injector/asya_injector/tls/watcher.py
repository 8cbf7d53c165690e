"""The certificate that the server presents, replaced while it runs.

It comes from a `CertRotator`, or from a mounted Secret (`read_directory`).
"""

import asyncio
import datetime as dt
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from asya_injector.kube_client import ApiException, HTTPError, describe_error
from asya_injector.tls.authority import CERTIFICATE, KEY, DamagedError

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 10.0
_FIRST_PAUSE = 0.25


class CertificatePair(NamedTuple):
    """A certificate, followed by the intermediate ones, and its key; PEM."""

    certificate: bytes
    key: bytes


class NotReadyError(Exception):
    """No certificate is available yet; the text says what is missing."""


class CertWatcher:
    """The certificate of the server.

    context: presents the pair that was loaded last; open connections keep theirs.
    ready: set once a pair is loaded that callers trust.
    missing: what `ready` waits for.
    expires: expiry of the loaded certificate.
    """

    def __init__(self, directory: Path, *, name: str) -> None:
        """Start without a certificate.

        directory: for the key; only this process should have access.
        name: the DNS name that callers use, which the certificate must hold.
        """
        self.context = _make_context()
        self.ready = asyncio.Event()
        self.missing = "no certificate yet"
        self.expires: dt.datetime | None = None
        self._name = name
        self._files = (directory / CERTIFICATE, directory / KEY)
        self._loaded: CertificatePair | None = None

    def load(self, pair: CertificatePair) -> None:
        """Present this pair from the next handshake on; raises DamagedError and keeps the old."""
        if pair == self._loaded:
            return
        expires = _validate(pair, self._name)
        for path, content in zip(self._files, pair, strict=True):
            path.touch(mode=0o600)
            path.write_bytes(content)
        try:
            # A context with half a pair could no longer shake hands, so try it elsewhere first.
            _make_context().load_cert_chain(*self._files)
        except ssl.SSLError as error:
            raise DamagedError(f"OpenSSL rejects the certificate: {error.reason}") from None
        self.context.load_cert_chain(*self._files)
        self._loaded, self.expires = pair, expires
        logger.info("certificate loaded", extra={"expires": expires.isoformat()})
        if expires <= dt.datetime.now(dt.UTC):
            logger.error("the certificate has expired, so the API server rejects it")

    async def watch(
        self, fetch: Callable[[], CertificatePair], *, pause: float = _CHECK_SECONDS
    ) -> None:
        """Load what `fetch` returns, every `pause` seconds; `fetch` runs in a thread.

        A failure is logged when it starts, changes and ends. The loaded pair stays in use.
        """
        failure = ""
        wait = _FIRST_PAUSE
        while True:
            try:
                self.load(await asyncio.to_thread(fetch))
            except Exception as error:  # any failure: the certificate must be watched further
                message, is_known = _describe(error)
                if message != failure:
                    logger.warning(
                        "cannot check the certificate; retrying",
                        extra={"error": message},
                        exc_info=not is_known,
                    )
                failure = self.missing = message
            else:
                if failure:
                    logger.info("the certificate is valid again")
                failure = ""
                self.ready.set()
            # At the start, most failures end within a second or take long.
            wait = pause if self.ready.is_set() else min(2 * wait, pause)
            await asyncio.sleep(wait)


def read_directory(directory: Path) -> CertificatePair:
    """The pair in a mounted Secret; raises NotReadyError if a file is missing or unreadable.

    The kubelet may replace both files between two reads, so they are read until nothing changes.
    """
    pair = _read_files(directory)
    while (again := _read_files(directory)) != pair:
        pair = again
    return pair


def _read_files(directory: Path) -> CertificatePair:
    try:
        return CertificatePair(*((directory / name).read_bytes() for name in (CERTIFICATE, KEY)))
    except OSError as error:
        raise NotReadyError(f"{error.filename}: {error.strerror}") from None


def _describe(error: Exception) -> tuple[str, bool]:
    """A failure in one line, equal while the failure lasts; and whether it is a known one."""
    if isinstance(error, ApiException | HTTPError):
        return describe_error(error), True
    if isinstance(error, NotReadyError | DamagedError):
        return str(error), True
    return f"{type(error).__name__}; see the log", False


def _validate(pair: CertificatePair, name: str) -> dt.datetime:
    """The expiry of the certificate; raises DamagedError if the key or a DNS name is wrong."""
    try:
        leaf = x509.load_pem_x509_certificate(pair.certificate)
        private = serialization.load_pem_private_key(pair.key, password=None)
    except (ValueError, TypeError) as error:
        raise DamagedError(f"the certificate or its key cannot be read: {error}") from None
    if leaf.public_key() != private.public_key():
        raise DamagedError("the key does not belong to the certificate")
    names = _list_dns_names(leaf)
    if name not in names and "*." + name.partition(".")[2] not in names:
        raise DamagedError(f"the certificate is not for {name}, which the API server calls")
    return leaf.not_valid_after_utc


def _list_dns_names(leaf: x509.Certificate) -> list[str]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return found.value.get_values_for_type(x509.DNSName)


def _make_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
