"""A client of the API server: objects as plain data, errors as one line.

The models and typed calls of the `kubernetes` package are not used: they take 20 MB of memory.
"""

import datetime as dt
import email.utils
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from kubernetes import client, config
from kubernetes.client import ApiClient
from kubernetes.client.exceptions import ApiException
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError

from asya_injector.kube_objects import Object, get_mapping

__all__ = [
    "ApiClient",
    "ApiException",
    "Cluster",
    "ConfigException",
    "HTTPError",
    "call",
    "connect",
    "describe_error",
    "get_reason",
    "read_time",
]

_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
# Seconds to connect and to answer, for the command line.
_TIMEOUT = (5, 60)
_PAGE = 500
_MAX_RESTARTS = 3


def connect(kubeconfig: str | None = None, context: str | None = None) -> ApiClient:
    """Return a client of the cluster that a kubeconfig, or a context in it, names.

    If neither is given, the pod's service account is used, else the default kubeconfig.
    Raises ConfigException or OSError.
    """
    settings = client.Configuration()
    if kubeconfig or context or not _load_service_account(settings):
        config.load_kube_config(  # type: ignore[no-untyped-call]
            kubeconfig, context, client_configuration=settings
        )
    # Each call has a deadline; by default, urllib3 would retry three times.
    settings.retries = False
    return ApiClient(settings)


def call(
    api: ApiClient,
    method: str,
    path: str,
    *,
    timeout: tuple[float, float] = _TIMEOUT,
    names: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
    body: Any = None,
    content_type: str = "application/json",
    accept: str = "application/json",
) -> tuple[Object, Mapping[str, str]]:
    """Call the API server; return the object that it answers with, and the headers.

    path: may contain `{placeholders}`, which are replaced by `names`. timeout: seconds to connect,
    and to answer. Raises ApiException, or HTTPError if the API server does not answer.
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
        raise ApiException(response.status, "OK, but the body is not JSON") from None


def describe_error(error: ApiException | HTTPError) -> str:
    """Describe a failed call in one line: the message of the API server, else the cause."""
    if isinstance(error, ApiException):
        message = _parse_status(error).get("message")
        return str(message) if message else f"{error.status} {error.reason}"
    cause = getattr(error, "reason", None) or error
    # The parts in front name Python objects, some with an address that is never the same twice.
    detail = str(cause.args[-1] if cause.args else "").rpartition(": ")[2]
    return f"the API server did not answer: {detail or type(cause).__name__}"


def get_reason(error: ApiException) -> str:
    """Return the machine-readable reason of a failed call, such as AlreadyExists, or "".

    https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/
    """
    return str(_parse_status(error).get("reason") or "")


def read_time(headers: Mapping[str, str]) -> dt.datetime:
    """Return the time of the API server from the headers of its answer.

    All replicas see this clock, and the API server checks certificates by it. If a proxy has
    dropped the Date header, return the local time.
    """
    try:
        date = email.utils.parsedate_to_datetime(headers.get("Date", ""))
    except ValueError:
        return dt.datetime.now(dt.UTC)
    return date if date.tzinfo else date.replace(tzinfo=dt.UTC)


class Cluster:
    """The objects of a cluster, for the command line.

    now: the time of the API server's last answer. All methods raise ApiException and HTTPError.
    """

    def __init__(self, api: ApiClient) -> None:
        self.now = dt.datetime.now(dt.UTC)
        self._api = api

    def get(self, api_version: str, resource: str, *, namespace: str, name: str) -> Object:
        """Return one object."""
        return self._call("GET", f"{_build_path(api_version, resource, namespace)}/{name}")

    def dry_run_create(
        self, api_version: str, resource: str, item: Object, *, namespace: str
    ) -> Object:
        """Return an object as the API server would admit it; nothing is created."""
        path = _build_path(api_version, resource, namespace)
        return self._call("POST", path, query={"dryRun": "All"}, body=item)

    def delete(self, api_version: str, resource: str, item: Object) -> None:
        """Delete an object, unless it was changed or replaced since it was read."""
        metadata = get_mapping(item, "metadata")
        path = f"{_build_path(api_version, resource, metadata['namespace'])}/{metadata['name']}"
        preconditions = {key: metadata[key] for key in ("uid", "resourceVersion")}
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
        self._call("DELETE", path, body=body)

    def list(
        self,
        api_version: str,
        resource: str,
        *,
        namespace: str = "",
        labels: Mapping[str, str] | None = None,
        name: str = "",
        metadata_only: bool = False,
    ) -> Iterator[Object]:
        """Yield all objects of a namespace, or of all, page by page.

        labels, name: only those that have these labels, and this name if it is not empty.

        If the API server drops a half-read list, it is read again, so an object may come twice.
        """
        path = _build_path(api_version, resource, namespace)
        query = {"limit": str(_PAGE)}
        if labels:
            query["labelSelector"] = ",".join(f"{key}={value}" for key, value in labels.items())
        if name:
            query["fieldSelector"] = f"metadata.name={name}"
        accept = _METADATA_ONLY if metadata_only else "application/json"
        token, restarts = "", 0
        while True:
            page = query | ({"continue": token} if token else {})
            try:
                answer = self._call("GET", path, query=page, accept=accept)
            except ApiException as error:
                if error.status != 410 or restarts == _MAX_RESTARTS:
                    raise
                token, restarts = "", restarts + 1
                continue
            yield from answer.get("items") or []
            token = get_mapping(answer, "metadata").get("continue") or ""
            if not token:
                return

    def _call(self, method: str, path: str, **options: Any) -> Object:
        answer, headers = call(self._api, method, path, **options)
        self.now = read_time(headers)
        return answer


def _build_path(api_version: str, resource: str, namespace: str) -> str:
    root = "/apis" if "/" in api_version else "/api"
    scope = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"{root}/{api_version}{scope}/{resource}"


def _load_service_account(settings: client.Configuration) -> bool:
    try:
        config.load_incluster_config(settings)  # type: ignore[no-untyped-call]
    except ConfigException:
        return False
    return True


def _parse_status(error: ApiException) -> dict[str, object]:
    try:
        body = json.loads(error.body or "")
    except (ValueError, TypeError):
        return {}
    return body if isinstance(body, dict) else {}
