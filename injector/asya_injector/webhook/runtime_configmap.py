"""The ConfigMap that pods mount, made in a namespace before the first pod that needs it."""

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
# To connect, and for an answer. Whoever waits has a deadline of its own.
_API_TIMEOUT = (1, 3)
# Long enough to make one call of a burst of pods, too short for a namespace to be deleted and made
# anew, or a copy to be deleted by hand, and the pods after that to wait for it for ever.
_REMEMBERED_SECONDS = 1.0


class RuntimeConfigMapWriter:
    """Makes sure that a namespace holds the ConfigMap before a pod that mounts it is let in.

    There is at most one look at a namespace at a time; who comes meanwhile waits for what it finds,
    so that many pods at once cost one call. That it was good is remembered for a second.
    """

    def __init__(
        self,
        payload: RuntimeFiles,
        api: ApiClient,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config_map = payload.config_map()
        self._api = api
        self._metrics = metrics
        self._clock = clock
        self._ensured: dict[str, float] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}

    async def ensure(self, namespace: str, *, within: float) -> None:
        """Return once the ConfigMap is there; raises Refusal if it is not after `within` seconds.

        within: the first who asks decides for those who wait with it.
        """
        now = self._clock()
        self._ensured = {name: end for name, end in self._ensured.items() if end > now}
        if namespace in self._ensured:
            return
        looking = self._looking.get(namespace)
        if looking is None:
            looking = asyncio.create_task(self._look(namespace, within))
            self._looking[namespace] = looking
            looking.add_done_callback(lambda task: self._looked(namespace, task))
        try:
            async with asyncio.timeout(within):
                await asyncio.shield(looking)
        except TimeoutError:
            raise self._unavailable(namespace, "the API server did not answer in time") from None

    def _looked(self, namespace: str, task: asyncio.Task[None]) -> None:
        del self._looking[namespace]
        if not task.cancelled():
            task.exception()  # asyncio would log it if nobody had waited so long

    async def _look(self, namespace: str, within: float) -> None:
        try:
            async with asyncio.timeout(within):
                found = await self._ensured_there(namespace)
        except TimeoutError:
            refusal = self._unavailable(namespace, "the API server did not answer in time")
        except ApiException as error:
            refusal = self._unavailable(namespace, describe_error(error), error.status)
        except HTTPError as error:
            refusal = self._unavailable(namespace, describe_error(error))
        except InjectionError as error:
            refusal = error
        else:
            self._metrics.runtime_configmap_writes.labels(found).inc()
            self._ensured[namespace] = self._clock() + _REMEMBERED_SECONDS
            return
        self._metrics.runtime_configmap_writes.labels(refusal.reason).inc()
        raise refusal

    async def _ensured_there(self, namespace: str) -> str:
        """`created` or `present`. What the API server asks to be tried again is tried again."""
        while True:
            try:
                return await asyncio.to_thread(self._create_or_check, namespace)
            except ApiException as error:
                if not _is_passing(error):
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
        # An empty patch changes nothing and returns the object: reading without the right to read.
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
                "exists with other content, which pods would run",
                fix=f"delete it: kubectl delete configmap -n {namespace} {name}",
                reason=Reason.RUNTIME_CONFIGMAP_CONFLICT,
            )
        return "present"

    def _unavailable(self, namespace: str, why: str, status: int | None = None) -> InjectionError:
        name = self._config_map["metadata"]["name"]
        return InjectionError(
            f"ConfigMap {namespace}/{name}",
            f"cannot be written: {quote(why)}",
            fix="let the injector create it (rights, quota), or create it by hand"
            if status in (403, 422)
            else "it is tried again with the next pod",
            reason=Reason.RUNTIME_CONFIGMAP_UNAVAILABLE,
        )


def _is_passing(error: ApiException) -> bool:
    """Whether the API server asks to be asked again: it is busy, or somebody was quicker."""
    lost_race = get_reason(error) == "Conflict" or (
        # It was deleted between our two calls, unless it is the namespace that is not there.
        error.status == 404 and "configmaps" in describe_error(error)
    )
    return error.status == 429 or lost_race


def _retry_after(error: ApiException) -> float:
    """Seconds that the API server asks for; https://httpwg.org/specs/rfc9110#field.retry-after ."""
    text = str((error.headers or {}).get("Retry-After", ""))
    return float(text) if text.isascii() and text.isdigit() else 0.1
