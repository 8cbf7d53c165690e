"""A cluster as the command line sees it: plain objects, page by page, and errors in one line."""

from __future__ import annotations

import datetime as dt
import email.utils
from collections.abc import Iterator, Mapping

from kubernetes import client
from kubernetes import config as kube_config

from asya_injector.kube_client import ApiException, HTTPError, call, told
from asya_injector.kube_objects import Object, mapping

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
    """The API server of one cluster. `now` is its clock, as of its last answer."""

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
        metadata = mapping(item, "metadata")
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
            token = mapping(answer, "metadata").get("continue") or ""
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
            raise ApiError(error.status, told(error)) from None
        date = email.utils.parsedate_to_datetime(headers["Date"])
        self.now = date if date.tzinfo else date.replace(tzinfo=dt.UTC)
        return answer
