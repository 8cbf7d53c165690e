"""Keeps what the API server needs to call us: the Secret with our certificate, and `caBundle`.

Replicas race by design: whoever writes the Secret first wins, the others read it again.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import logging
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kubernetes.client import AdmissionregistrationV1Api, ApiClient, CoreV1Api
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from asya_injector.certificates import DamagedError, KeyPair, created
from asya_injector.config import Config

logger = logging.getLogger(__name__)

_API_TIMEOUT = (2, 5)
_CHECK_SECONDS = 10.0


class Trust:
    """The certificate in use and the means to keep it good.

    `context` serves the certificate that was loaded last; connections in flight keep theirs.
    `ready` is set once a certificate is loaded and the API server has been told its CA.
    Key files lie in `directory`, which only this process should be able to read.
    """

    def __init__(self, config: Config, api: ApiClient, directory: Path) -> None:
        self.context = _server_context()
        self.ready = asyncio.Event()
        self.certificate = directory / "tls.crt"
        self.key = directory / "tls.key"
        self.expires: dt.datetime | None = None
        service = f"{config.service}.{config.namespace}"
        self._names = [f"{service}.svc", service, f"{service}.svc.cluster.local"]
        self._config = config
        self._secrets: Any = CoreV1Api(api)
        self._webhooks: Any = AdmissionregistrationV1Api(api)
        self._loaded: KeyPair | None = None

    async def keep(self) -> None:
        """Check Secret, `caBundle` and certificate for ever, at once and then every 10 seconds."""
        while True:
            try:
                pair = await asyncio.to_thread(self._reconcile)
            except (ApiException, HTTPError) as error:
                # What is loaded serves on; without the API server nobody calls us anyway.
                logger.warning(
                    "certificate could not be checked, tried again in 10 s: %s",
                    str(error).splitlines()[0],
                )
            else:
                self._load(pair)
                self.ready.set()
            await asyncio.sleep(_CHECK_SECONDS)

    def _reconcile(self) -> KeyPair:
        """The pair to serve. The API server trusts its CA before anybody is shown it."""
        # Looked at first: where it is gone, the release is being uninstalled, and a Secret that
        # this replica made in its last seconds would be left behind.
        configuration = self._webhooks.read_mutating_webhook_configuration(
            self._config.webhook_configuration, _request_timeout=_API_TIMEOUT
        )
        pair = self._stored_pair(owner=configuration.metadata)
        self._publish(configuration, pair.bundle)
        return pair

    def _stored_pair(self, *, owner: Any) -> KeyPair:
        """What the Secret holds; made or renewed there if it is not good.

        owner: metadata of the webhook configuration; a new Secret belongs to the same release.
        """
        namespace, name = self._config.namespace, self._config.tls_secret
        now = dt.datetime.now(dt.UTC)
        while True:
            secret = None
            with contextlib.suppress(_NotFoundError), _as_conditions():
                secret = self._secrets.read_namespaced_secret(
                    name, namespace, _request_timeout=_API_TIMEOUT
                )
            pair = None
            if secret is not None and secret.data:
                try:
                    pair = KeyPair.from_secret(secret.data)
                except DamagedError as error:
                    logger.warning(
                        "Secret %s/%s is damaged, written again: %s", namespace, name, error
                    )
            if pair is not None and not pair.is_due(self._names, now=now):
                return pair
            # What was lost is put back as long as a replica remembers it: a new CA would not be
            # trusted by those calls that reach a replica which has not read the Secret yet.
            pair = pair or self._loaded
            if pair is None:
                fresh = created(self._names, now=now)
            elif pair.is_due(self._names, now=now):
                fresh = pair.renewed(self._names, now=now)
            else:
                fresh = pair
            with contextlib.suppress(_NotFoundError, _ConflictError), _as_conditions():
                if secret is None:
                    annotations = {
                        key: value
                        for key, value in (owner.annotations or {}).items()
                        if key.startswith("meta.helm.sh/")
                    }
                    metadata = {"name": name, "labels": owner.labels, "annotations": annotations}
                    self._secrets.create_namespaced_secret(
                        namespace,
                        {"metadata": metadata, "type": "Opaque", "data": fresh.to_secret()},
                        _request_timeout=_API_TIMEOUT,
                    )
                else:
                    # The resource version makes the slower of two replicas lose, and read again.
                    secret.data = fresh.to_secret()
                    self._secrets.replace_namespaced_secret(
                        name, namespace, secret, _request_timeout=_API_TIMEOUT
                    )
                logger.info("certificate written to Secret %s/%s", namespace, name)

    def _publish(self, configuration: Any, bundle: bytes) -> None:
        """Tell the API server which CA to trust, if it does not know."""
        wanted = base64.b64encode(bundle).decode()
        stale = [
            webhook.name
            for webhook in configuration.webhooks or []
            if webhook.client_config.ca_bundle != wanted
        ]
        if stale:
            patch = [{"name": each, "clientConfig": {"caBundle": wanted}} for each in stale]
            self._webhooks.patch_mutating_webhook_configuration(
                configuration.metadata.name,
                {"webhooks": patch},
                _content_type="application/strategic-merge-patch+json",
                _request_timeout=_API_TIMEOUT,
            )
            logger.info("caBundle written for %s", ", ".join(stale))

    def _load(self, pair: KeyPair) -> None:
        if pair == self._loaded:
            return
        for path, content in ((self.certificate, pair.certificate), (self.key, pair.key)):
            path.touch(mode=0o600)
            path.write_bytes(content)
        # A context that took one half of a pair could not shake hands any more: try it elsewhere.
        _server_context().load_cert_chain(self.certificate, self.key)
        self.context.load_cert_chain(self.certificate, self.key)
        self._loaded = pair
        self.expires = pair.expires
        logger.info("certificate loaded, valid until %s", pair.expires.isoformat())


class _NotFoundError(Exception):
    pass


class _ConflictError(Exception):
    pass


@contextlib.contextmanager
def _as_conditions() -> Iterator[None]:
    """The two answers that are part of the race, as exceptions of their own."""
    try:
        yield
    except ApiException as error:
        if error.status == 404:
            raise _NotFoundError from None
        if error.status == 409:
            raise _ConflictError from None
        raise


def _server_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
