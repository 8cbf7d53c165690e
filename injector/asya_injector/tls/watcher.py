"""The certificate that the listener shows, exchanged while it serves.

Who makes it is another matter: this process through a Secret (`trust`), or somebody else, who fills
a directory (`Files`).
"""

from __future__ import annotations

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
    """A certificate, followed by those between it and its CA, and its key; PEM."""

    certificate: bytes
    key: bytes


class NotReadyError(Exception):
    """There is nothing to show yet; the text says what is waited for."""


class CertWatcher:
    """What the listener shows.

    context: serves the pair that was loaded last; connections that are open keep theirs.
    ready: set once there is something to show, and whoever calls can trust it.
    missing: what is waited for until then.
    expires: when the certificate that is shown ends.
    """

    def __init__(self, directory: Path, *, name: str) -> None:
        """Show nothing yet.

        directory: for the key; only this process should be able to read it.
        name: the DNS name that is called, which the certificate must have.
        """
        self.context = _server_context()
        self.ready = asyncio.Event()
        self.missing = "no certificate yet"
        self.expires: dt.datetime | None = None
        self._name = name
        self._files = (directory / CERTIFICATE, directory / KEY)
        self._shown: CertificatePair | None = None

    def show(self, pair: CertificatePair) -> None:
        """Show this from the next handshake on; raises DamagedError and shows what it did."""
        if pair == self._shown:
            return
        expires = _checked(pair, self._name)
        for path, content in zip(self._files, pair, strict=True):
            path.touch(mode=0o600)
            path.write_bytes(content)
        try:
            # A context that took half of a pair could not shake hands any more: try elsewhere.
            _server_context().load_cert_chain(*self._files)
        except ssl.SSLError as error:
            raise DamagedError(f"OpenSSL does not take the certificate: {error.reason}") from None
        self.context.load_cert_chain(*self._files)
        self._shown, self.expires = pair, expires
        logger.info("certificate loaded", extra={"expires": expires.isoformat()})
        if expires <= dt.datetime.now(dt.UTC):
            logger.error("the certificate has expired, so the API server refuses it")

    async def keep(
        self, fetch: Callable[[], CertificatePair], *, pause: float = _CHECK_SECONDS
    ) -> None:
        """Show what `fetch` gives, for ever; it is called in a thread, every `pause` seconds.

        A trouble is logged when it begins, changes and ends. What is shown stays meanwhile.
        """
        trouble = ""
        wait = _FIRST_PAUSE
        while True:
            try:
                self.show(await asyncio.to_thread(fetch))
            except Exception as error:  # whatever it is, the certificate is looked after
                said, is_known = _said(error)
                if said != trouble:
                    logger.warning(
                        "the certificate cannot be checked; tried again all the time",
                        extra={"error": said},
                        exc_info=not is_known,
                    )
                trouble = self.missing = said
            else:
                if trouble:
                    logger.info("the certificate is in order again")
                trouble = ""
                self.ready.set()
            # What is waited for at the start comes soon, or takes long.
            wait = pause if self.ready.is_set() else min(2 * wait, pause)
            await asyncio.sleep(wait)


class CertificateDirectory:
    """A pair as `tls.crt` and `tls.key` of a directory, where the kubelet keeps a Secret.

    The kubelet exchanges both at once, but maybe between two reads here: `Identity.show` refuses
    a torn pair, and the next read mends it.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self) -> CertificatePair:
        """Raises NotReadyError where a file is missing or cannot be read."""
        try:
            return CertificatePair(
                *((self._directory / name).read_bytes() for name in (CERTIFICATE, KEY))
            )
        except OSError as error:
            raise NotReadyError(f"{error.filename}: {error.strerror}") from None


def _said(error: Exception) -> tuple[str, bool]:
    """A trouble in one line that stays the same while the trouble does; whether it is foreseen."""
    if isinstance(error, ApiException | HTTPError):
        return describe_error(error), True
    if isinstance(error, NotReadyError | DamagedError):
        return str(error), True
    return f"{type(error).__name__}; see the log", False


def _checked(pair: CertificatePair, name: str) -> dt.datetime:
    """When a certificate ends; raises DamagedError where key or DNS names do not fit."""
    try:
        leaf = x509.load_pem_x509_certificate(pair.certificate)
        private = serialization.load_pem_private_key(pair.key, password=None)
    except (ValueError, TypeError) as error:
        raise DamagedError(f"the certificate or its key cannot be read: {error}") from None
    if leaf.public_key() != private.public_key():
        raise DamagedError("the key does not belong to the certificate")
    names = _names(leaf)
    if name not in names and "*." + name.partition(".")[2] not in names:
        raise DamagedError(f"the certificate is not for {name}, which the API server calls")
    return leaf.not_valid_after_utc


def _names(leaf: x509.Certificate) -> list[str]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return found.value.get_values_for_type(x509.DNSName)


def _server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
