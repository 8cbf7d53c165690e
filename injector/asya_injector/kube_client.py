"""What every call to the API server has in common: plain objects, and faults as one line.

The client's models and typed calls are not used: they are some 20 MB in memory, and what is looked
at is little.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kubernetes import client, config
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

__all__ = ["ApiClient", "ApiException", "HTTPError", "call", "connect", "reason_of", "told"]


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


def call(
    api: ApiClient,
    method: str,
    path: str,
    *,
    timeout: tuple[float, float],
    names: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
    body: Any = None,
    content_type: str = "application/json",
    accept: str = "application/json",
) -> tuple[dict[str, Any], Mapping[str, str]]:
    """The object that the API server answers with, and its headers.

    path: may have `{words}` that `names` are put in for. timeout: seconds to connect, and for the
    answer. Raises ApiException, or urllib3's HTTPError where there is no answer.
    """
    untyped: Any = api
    request = untyped.param_serialize(
        method,
        path,
        path_params=dict(names or {}),
        query_params=list((query or {}).items()),
        header_params={"Accept": accept, "Content-Type": content_type},
        body=body,
        auth_settings=["BearerToken"],
    )
    response = untyped.call_api(*request, _request_timeout=timeout)
    response.read()
    if not 200 <= response.status < 300:
        raise ApiException(http_resp=response)
    try:
        return json.loads(response.data), response.headers
    except ValueError:
        raise ApiException(response.status, "OK, but not JSON: is that an API server?") from None


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
