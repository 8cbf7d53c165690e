"""The runtime ConfigMap: created in a namespace before its first actor is admitted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from asya_injector.errors import InjectionError, Reason, quote
from asya_injector.kube_client import (
    ApiClient,
    ApiException,
    HTTPError,
    call,
    describe_error,
    get_reason,
)
from asya_injector.runtime_files import RuntimeFiles
from asya_injector.webhook.telemetry import Metrics

_PATH = "/api/v1/namespaces/{namespace}/configmaps"
# To connect, and for the answer. Each review has its own deadline as well.
_API_TIMEOUT = (1, 3)
# Long enough to serve a burst of pods with one call. Short enough that pods do not hang in a
# namespace that was deleted and created again, or whose runtime ConfigMap was deleted by hand.
_CACHE_SECONDS = 1.0


class RuntimeConfigMapWriter:
    """Ensures that a namespace holds the runtime ConfigMap before a pod that mounts it is admitted.

    Concurrent pods of a namespace share one check, and a success is cached for a second.
    """

    def __init__(
        self,
        runtime_files: RuntimeFiles,
        api: ApiClient,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config_map = runtime_files.config_map()
        self._api = api
        self._metrics = metrics
        self._clock = clock
        self._cached: dict[str, float] = {}
        self._checks: dict[str, asyncio.Task[None]] = {}

    async def ensure(self, namespace: str, *, within: float) -> None:
        """Return once the ConfigMap exists; raises InjectionError if it does not within seconds.

        within: the first caller's limit also applies to callers that share its check.
        """
        now = self._clock()
        self._cached = {name: end for name, end in self._cached.items() if end > now}
        if namespace in self._cached:
            return
        check = self._checks.get(namespace)
        if check is None:
            check = asyncio.create_task(self._check(namespace, within))
            self._checks[namespace] = check
            check.add_done_callback(lambda task: self._forget_check(namespace, task))
        try:
            async with asyncio.timeout(within):
                await asyncio.shield(check)
        except TimeoutError:
            raise self._unavailable(namespace, "the API server did not answer in time") from None

    def _forget_check(self, namespace: str, task: asyncio.Task[None]) -> None:
        del self._checks[namespace]
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio logs it if all callers timed out

    async def _check(self, namespace: str, within: float) -> None:
        try:
            async with asyncio.timeout(within):
                result = await self._create_or_check_with_retries(namespace)
        except TimeoutError:
            failure = self._unavailable(namespace, "the API server did not answer in time")
        except ApiException as error:
            failure = self._unavailable(namespace, describe_error(error), error.status)
        except HTTPError as error:
            failure = self._unavailable(namespace, describe_error(error))
        except InjectionError as error:
            failure = error
        else:
            self._metrics.runtime_configmap_writes.labels(result).inc()
            self._cached[namespace] = self._clock() + _CACHE_SECONDS
            return
        self._metrics.runtime_configmap_writes.labels(failure.reason).inc()
        raise failure

    async def _create_or_check_with_retries(self, namespace: str) -> str:
        """`created` or `present`; retried as the API server asks for it."""
        while True:
            try:
                return await asyncio.to_thread(self._create_or_check, namespace)
            except ApiException as error:
                if not _is_transient(error):
                    raise
                await asyncio.sleep(_retry_after(error))

    def _create_or_check(self, namespace: str) -> str:
        name = self._config_map["metadata"]["name"]
        names = {"namespace": namespace, "name": name}
        try:
            call(
                self._api,
                "POST",
                _PATH,
                names=names,
                body=self._config_map,
                timeout=_API_TIMEOUT,
            )
        except ApiException as error:
            if get_reason(error) != "AlreadyExists":
                raise
        else:
            return "created"
        # An empty patch changes nothing and returns the object, without the right to read it.
        present, _ = call(
            self._api,
            "PATCH",
            f"{_PATH}/{{name}}",
            names=names,
            body={},
            content_type="application/merge-patch+json",
            timeout=_API_TIMEOUT,
        )
        if present.get("data") != self._config_map["data"]:
            raise InjectionError(
                f"ConfigMap {namespace}/{name}",
                "exists with different content, which pods would run",
                fix=f"delete it: kubectl delete configmap -n {namespace} {name}",
                reason=Reason.RUNTIME_CONFIGMAP_CONFLICT,
            )
        return "present"

    def _unavailable(self, namespace: str, cause: str, status: int | None = None) -> InjectionError:
        name = self._config_map["metadata"]["name"]
        return InjectionError(
            f"ConfigMap {namespace}/{name}",
            f"could not be created or checked: {quote(cause)}",
            fix="allow the injector to create it (rights, quota), or create it by hand"
            if status in (403, 422)
            else "the next pod retries",
            reason=Reason.RUNTIME_CONFIGMAP_UNAVAILABLE,
        )


def _is_transient(error: ApiException) -> bool:
    """Whether to retry: the API server is busy, or another client was faster."""
    lost_race = get_reason(error) == "Conflict" or (
        # Deleted between the two calls, unless it is the namespace that does not exist.
        error.status == 404 and "configmaps" in describe_error(error)
    )
    return error.status == 429 or lost_race


def _retry_after(error: ApiException) -> float:
    """Seconds to wait, from https://httpwg.org/specs/rfc9110#field.retry-after ."""
    text = str((error.headers or {}).get("Retry-After", ""))
    return float(text) if text.isascii() and text.isdigit() else 0.1
