"""What every call to the API server has in common: one connection, and faults as one line."""

from __future__ import annotations

import json

from kubernetes import client, config
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

__all__ = ["ApiClient", "ApiException", "HTTPError", "connect", "reason_of", "told"]


def connect() -> ApiClient:
    """A client with the rights of the pod's service account, else those of the kubeconfig.

    Raises kubernetes.config.ConfigException where there is neither.
    """
    settings = client.Configuration()
    try:
        config.load_incluster_config(settings)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    # urllib3 would try again three times, and each call has its own deadline.
    settings.retries = False
    return client.ApiClient(settings)


def told(error: ApiException | HTTPError) -> str:
    """A failed call in one line: the API server's own sentence, else what hindered the call."""
    if isinstance(error, ApiException):
        sentence = _status(error).get("message")
        return str(sentence) if sentence else f"{error.status} {error.reason}"
    # The text of urllib3's errors has addresses of objects in it, so no two are alike.
    cause = getattr(error, "reason", None) or error
    return f"the API server did not answer ({type(cause).__name__})"


def reason_of(error: ApiException) -> str:
    """The machine-readable reason of a failed call, such as AlreadyExists; empty if there is none.

    https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/
    """
    return str(_status(error).get("reason") or "")


def _status(error: ApiException) -> dict[str, object]:
    try:
        body = json.loads(error.body or "")
    except (ValueError, TypeError):
        return {}
    return body if isinstance(body, dict) else {}
