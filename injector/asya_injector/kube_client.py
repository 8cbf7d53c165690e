"""What every call to the API server has in common: plain objects, and faults as one line.

The client's models and typed calls are not used: they are some 20 MB in memory, and what is looked
at is little.
"""

from __future__ import annotations

import datetime as dt
import email.utils
import json
from collections.abc import Iterator, Mapping
from typing import Any

from kubernetes import client, config
from kubernetes import config as kube_config
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from asya_injector.kube_objects import Object, get_mapping

__all__ = [
    "ApiClient",
    "ApiException",
    "HTTPError",
    "call",
    "connect",
    "describe_error",
    "get_reason",
]


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


def describe_error(error: ApiException | HTTPError) -> str:
    """A failed call in one line: the API server's own sentence, else what hindered the call."""
    if isinstance(error, ApiException):
        sentence = _status(error).get("message")
        return str(sentence) if sentence else f"{error.status} {error.reason}"
    # The text of urllib3's errors has addresses of objects in it, so no two are alike.
    cause = getattr(error, "reason", None) or error
    return f"the API server did not answer ({type(cause).__name__})"


def get_reason(error: ApiException) -> str:
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


# MERGED A cluster as the command line sees it: plain objects, page by page, and errors in one line.

_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_TIMEOUT = (5, 60)
_PAGE = 500
_RESTARTS = 3


class ClusterError(Exception):
    """A cluster cannot be reached, or there is no way to one: one line."""


class ApiError(Exception):
    """The API server said no: its status and its own sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Cluster:
    """The API server of one cluster.

    now: its clock, as of its last answer; the local clock where an answer carries no date.
    """

    def __init__(self, api: client.ApiClient) -> None:
        self.now = dt.datetime.now(dt.UTC)
        self._api = api

    @classmethod
    def connect(cls, kubeconfig: str | None, context: str | None) -> Cluster:
        """By a kubeconfig, else by the service account of the pod; raises ClusterError."""
        settings = client.Configuration()
        settings.retries = False
        try:
            if not (kubeconfig or context):
                try:
                    kube_config.load_incluster_config(settings)  # type: ignore[no-untyped-call]
                    return cls(client.ApiClient(settings))
                except kube_config.ConfigException:
                    pass
            kube_config.load_kube_config(  # type: ignore[no-untyped-call]
                kubeconfig, context, client_configuration=settings
            )
        except (kube_config.ConfigException, OSError) as error:
            line = " ".join(str(error).split())
            raise ClusterError(f"no way to a cluster: {line}; see --kubeconfig") from None
        return cls(client.ApiClient(settings))

    def get(self, path: str) -> Object:
        """One object; raises ApiError or ClusterError."""
        return self._call("GET", path, {})

    def create(self, path: str, item: Object, *, dry_run: bool) -> Object:
        """A new object as it was admitted; raises ApiError or ClusterError."""
        return self._call("POST", path, {"dryRun": "All"} if dry_run else {}, body=item)

    def delete(self, path: str, item: Object) -> None:
        """Delete an object if it is still this very one, unchanged; raises ApiError."""
        metadata = get_mapping(item, "metadata")
        preconditions = {
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        }
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
        self._call("DELETE", path, {}, body=body)

    def list(
        self, path: str, *, labels: str = "", metadata_only: bool = False, page: int = _PAGE
    ) -> Iterator[Object]:
        """All objects at a path. labels: a selector. Raises ApiError or ClusterError.

        A list that the API server forgets half-way is begun anew, so that an object may come twice.
        """
        query = {"limit": str(page), **({"labelSelector": labels} if labels else {})}
        restarts, token = 0, ""
        while True:
            try:
                answer = self._call(
                    "GET",
                    path,
                    query | ({"continue": token} if token else {}),
                    accept=_METADATA_ONLY if metadata_only else "application/json",
                )
            except ApiError as error:
                if error.status != 410 or restarts == _RESTARTS:
                    raise
                restarts, token = restarts + 1, ""
                continue
            yield from answer.get("items") or []
            token = get_mapping(answer, "metadata").get("continue") or ""
            if not token:
                return

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        *,
        body: Object | None = None,
        accept: str = "application/json",
    ) -> Object:
        try:
            answer, headers = call(
                self._api, method, path, query=query, body=body, accept=accept, timeout=_TIMEOUT
            )
        except HTTPError as error:
            cause = getattr(error, "reason", None) or error
            line = str(cause).rpartition(": ")[2] or type(cause).__name__
            raise ClusterError(f"the API server does not answer: {line}") from None
        except ApiException as error:
            raise ApiError(error.status, describe_error(error)) from None
        self.now = _parse_date(headers.get("Date", "")) or dt.datetime.now(dt.UTC)
        return answer


def _parse_date(header: str) -> dt.datetime | None:
    """The time in a Date header; None if there is none, since proxies may drop the header."""
    try:
        date = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return None
    return date if date.tzinfo else date.replace(tzinfo=dt.UTC)
