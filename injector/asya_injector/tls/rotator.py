"""Keeps what the API server needs to call us: the Secret with our certificate, and `caBundle`.

Replicas race by design: whoever writes the Secret first wins, the others read it again. All
decisions are made in `certificates`; here are the calls.
"""

from __future__ import annotations

import base64
import datetime as dt
import logging
from typing import Any

from asya_injector.kube_client import ApiClient, ApiException, call, read_time
from asya_injector.tls.authority import Decision, KeyPair, decide
from asya_injector.tls.watcher import CertificatePair, NotReadyError

logger = logging.getLogger(__name__)

_WEBHOOKS = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{name}"
_SECRETS = "/api/v1/namespaces/{namespace}/secrets"
_API_TIMEOUT = (2, 5)
# Each lost race is another replica's success, so a second reading finds a good Secret.
_MOST_RACES = 5


class CertRotator:
    """A certificate that the API server trusts; called again and again, it stays so.

    Only one thread may call it at a time.
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
        """Keep a pair in a Secret and its CA in a webhook configuration, both by name.

        dns_names: those that the certificate must hold; the API server calls the first.
        """
        self._api = api
        self._names = {"namespace": namespace, "name": secret}
        self._webhook_configuration = webhook_configuration
        self._dns_names = dns_names
        self._remembered: KeyPair | None = None

    def pair(self) -> CertificatePair:
        """The pair to show; the API server trusts its CA before anybody is shown it.

        Raises NotReadyError, ApiException or urllib3's HTTPError: then what was shown stays.
        """
        configuration, now = self._configuration()
        pair = self._stored(owner=configuration["metadata"], now=now)
        self._publish(configuration, pair.bundle)
        self._remembered = pair
        return CertificatePair(pair.certificate, pair.key)

    def _configuration(self) -> tuple[Any, dt.datetime]:
        """The webhook configuration, and the time.

        Looked at first: where it is gone, the release is being uninstalled, and a Secret that this
        replica made in its last seconds would be left behind.
        """
        name = self._webhook_configuration
        try:
            configuration, headers = call(
                self._api, "GET", _WEBHOOKS, names={"name": name}, timeout=_API_TIMEOUT
            )
        except ApiException as error:
            if error.status != 404:
                raise
            raise NotReadyError(f"there is no MutatingWebhookConfiguration {name}") from None
        return configuration, read_time(headers)

    def _stored(self, *, owner: Any, now: dt.datetime) -> KeyPair:
        """What the Secret holds; made or renewed there if it is not good.

        owner: metadata of the webhook configuration; a new Secret belongs to the same release.
        """
        for _ in range(_MOST_RACES):
            secret = self._read()
            decision = decide(
                None if secret is None else secret.get("data") or {},
                remembered=self._remembered,
                names=self._dns_names,
                now=now,
            )
            if decision.action == "keep" or self._written(decision, secret, owner):
                return decision.pair
        raise NotReadyError("other replicas write the Secret all the time")

    def _read(self) -> Any:
        path = f"{_SECRETS}/{{name}}"
        try:
            return call(self._api, "GET", path, names=self._names, timeout=_API_TIMEOUT)[0]
        except ApiException as error:
            if error.status != 404:
                raise
            return None

    def _written(self, decision: Decision, secret: Any, owner: Any) -> bool:
        """Whether this replica was the one that wrote the Secret."""
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
            # The resource version makes the slower of two replicas lose, and read again.
            method, path, body = "PUT", f"{_SECRETS}/{{name}}", secret | {"data": data}
        try:
            call(self._api, method, path, names=self._names, body=body, timeout=_API_TIMEOUT)
        except ApiException as error:
            if error.status not in (404, 409):
                raise
            return False
        logger.info(
            "certificate written",
            extra={"secret": f"{namespace}/{name}", "why": decision.why},
        )
        return True

    def _publish(self, configuration: Any, bundle: bytes) -> None:
        """Tell the API server which CA to trust, if it does not know."""
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
