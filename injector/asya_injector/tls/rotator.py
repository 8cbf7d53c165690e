"""Keeps the Secret with the webhook's certificate, and the `caBundle` that makes it trusted.

Replicas may race: the first one to write the Secret wins, and the others read it again. `authority`
decides; this module makes the calls.
"""

import base64
import datetime as dt
import logging
from collections.abc import Mapping
from typing import Any

from asya_injector.kube_client import ApiClient, ApiException, call, read_time
from asya_injector.tls.authority import Decision, KeyPair, decide
from asya_injector.tls.watcher import CertificatePair, NotReadyError

logger = logging.getLogger(__name__)

_WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}"
_SECRETS = "/api/v1/namespaces/{namespace}/secrets"
_SECRET = f"{_SECRETS}/{{name}}"
_API_TIMEOUT = (2, 5)
# A lost race means that another replica has written a valid Secret, so one retry is usually enough.
_MAX_RACES = 5


class CertRotator:
    """Provides a certificate that the API server trusts, renewed before it expires.

    Not thread-safe: one call at a time.
    """

    def __init__(
        self,
        api: ApiClient,
        *,
        namespace: str,
        secret: str,
        webhook_configuration: str,
        dns_names: list[str],
    ) -> None:
        """Keep the pair in this Secret, and its CA in this webhook configuration.

        dns_names: names that the certificate must hold; the API server calls the first.
        """
        self._api = api
        self._names = {"namespace": namespace, "name": secret}
        self._webhook_configuration = webhook_configuration
        self._dns_names = dns_names
        self._remembered: KeyPair | None = None

    def fetch(self) -> CertificatePair:
        """The pair to serve. The API server trusts its CA before this returns.

        Raises NotReadyError, ApiException or urllib3's HTTPError; the previous pair stays valid.
        """
        configuration, now = self._read_configuration()
        pair = self._ensure_pair(owner=configuration["metadata"], now=now)
        self._publish(configuration, pair.bundle)
        self._remembered = pair
        return CertificatePair(pair.certificate, pair.key)

    def _read_configuration(self) -> tuple[Any, dt.datetime]:
        """The webhook configuration, and the API server's time.

        Read before the Secret: without it, the release is being uninstalled, and a new Secret would
        be left behind.
        """
        name = self._webhook_configuration
        configuration, headers = self._find(_WEBHOOKS, {"name": name})
        if configuration is None:
            raise NotReadyError(f"MutatingWebhookConfiguration {name} not found")
        return configuration, read_time(headers)

    def _ensure_pair(self, *, owner: Any, now: dt.datetime) -> KeyPair:
        """The pair in the Secret, created or renewed if needed.

        owner: metadata of the webhook configuration; a new Secret joins the same Helm release.
        """
        for _ in range(_MAX_RACES):
            secret, _ = self._find(_SECRET, self._names)
            decision = decide(
                None if secret is None else secret.get("data") or {},
                remembered=self._remembered,
                names=self._dns_names,
                now=now,
            )
            if decision.action == "keep" or self._write_secret(decision, secret, owner):
                return decision.pair
        raise NotReadyError("other replicas keep changing the Secret")

    def _find(self, path: str, names: dict[str, str]) -> tuple[Any, Mapping[str, str]]:
        """An object and the headers of the answer; None if there is no such object."""
        try:
            return call(self._api, "GET", path, names=names, timeout=_API_TIMEOUT)
        except ApiException as error:
            if error.status != 404:
                raise
            return None, {}

    def _write_secret(self, decision: Decision, secret: Any, owner: Any) -> bool:
        """Create or replace the Secret; False if another replica was faster."""
        name, namespace = self._names["name"], self._names["namespace"]
        data = decision.pair.to_secret()
        method, path = "POST", _SECRETS
        if secret is None:
            annotations = {
                key: value
                for key, value in (owner.get("annotations") or {}).items()
                if key.startswith("meta.helm.sh/")
            }
            labels = owner.get("labels") or {}
            metadata = {"name": name, "labels": labels, "annotations": annotations}
            body = {"metadata": metadata, "type": "Opaque", "data": data}
        else:
            # The resource version makes the slower of two replicas fail, and read again.
            method, path, body = "PUT", _SECRET, secret | {"data": data}
        try:
            call(self._api, method, path, names=self._names, body=body, timeout=_API_TIMEOUT)
        except ApiException as error:
            if error.status not in (404, 409):
                raise
            return False
        logger.info(
            "certificate written",
            extra={"secret": f"{namespace}/{name}", "reason": decision.reason},
        )
        return True

    def _publish(self, configuration: Any, bundle: bytes) -> None:
        """Write the CA into each webhook that lacks it."""
        wanted = base64.b64encode(bundle).decode()
        stale = [
            webhook["name"]
            for webhook in configuration.get("webhooks") or []
            if webhook["clientConfig"].get("caBundle") != wanted
        ]
        if stale:
            patch = [{"name": each, "clientConfig": {"caBundle": wanted}} for each in stale]
            call(
                self._api,
                "PATCH",
                _WEBHOOKS,
                names={"name": configuration["metadata"]["name"]},
                body={"webhooks": patch},
                content_type="application/strategic-merge-patch+json",
                timeout=_API_TIMEOUT,
            )
            logger.info("caBundle written", extra={"webhooks": stale})
