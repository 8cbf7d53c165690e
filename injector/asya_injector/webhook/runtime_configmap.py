"""The runtime ConfigMap: created in a namespace before its first actor is admitted."""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from asya_injector.errors import InjectionError, Reason
from asya_injector.http.limits import Turns
from asya_injector.kube_client import (
    ApiClient,
    ApiException,
    HTTPError,
    call,
    describe_error,
    get_reason,
)
from asya_injector.runtime_files import RuntimeFiles, Unusable, find_unusable
from asya_injector.webhook.telemetry import Metrics

logger = logging.getLogger(__name__)

_PATH = "/api/v1/namespaces/{namespace}/configmaps"
# To connect, and for the answer. Each review has its own deadline as well.
_API_TIMEOUT = (1, 3)
# Long enough to serve a burst of pods with one call. Short enough that pods do not hang in a
# namespace that was deleted and created again, or whose runtime ConfigMap was deleted by hand.
_CACHE_SECONDS = 1.0
# Calls at the same time. Their threads are not those of the certificate's renewal.
_THREADS = 4
# Other clients may create and delete the ConfigMap between two calls.
_MAX_RACES = 3
_CONFLICTS = {
    Unusable.DIFFERENT: "exists with different content, which pods would run",
    Unusable.BINARY: "exists with binaryData, which pods would import",
    Unusable.MUTABLE: "exists and is not immutable, so it could be changed",
}


@dataclass
class _Check:
    """A check of one namespace, and how many reviews wait for it."""

    task: asyncio.Task[None]
    waiting: int = 0


class RuntimeConfigMapWriter:
    """Ensures that a namespace holds the runtime ConfigMap before a pod that mounts it is admitted.

    Concurrent pods of a namespace share one check, and a success is cached for a second. A check
    ends with the last review that waits for it.
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
        self._checks: dict[str, _Check] = {}
        self._turns = Turns(_THREADS)
        self._threads = ThreadPoolExecutor(_THREADS, "runtime-configmap")

    async def ensure(self, namespace: str, *, within: float, caller: str = "") -> None:
        """Return once the ConfigMap exists; raises InjectionError if it does not within seconds.

        caller: address of the review's sender; addresses get their turns in rotation.
        """
        now = self._clock()
        self._cached = {name: end for name, end in self._cached.items() if end > now}
        if namespace in self._cached:
            return
        check = self._checks.get(namespace)
        if check is None:
            check = _Check(asyncio.create_task(self._check(namespace, caller)))
            check.task.add_done_callback(_retrieve)
            self._checks[namespace] = check
        check.waiting += 1
        try:
            async with asyncio.timeout(within):
                await asyncio.shield(check.task)
        except TimeoutError:
            raise self._unavailable(namespace, "the API server did not answer in time") from None
        finally:
            check.waiting -= 1
            if check.task.done() or not check.waiting:
                check.task.cancel()
                if self._checks.get(namespace) is check:
                    del self._checks[namespace]

    async def _check(self, namespace: str, caller: str) -> None:
        try:
            result = await self._create_or_check_with_retries(namespace, caller)
        except (ApiException, HTTPError) as error:
            failure = self._describe_failure(namespace, error)
        except InjectionError as error:
            failure = error
        else:
            self._metrics.runtime_configmap_writes.labels(result).inc()
            self._cached[namespace] = self._clock() + _CACHE_SECONDS
            return
        self._metrics.runtime_configmap_writes.labels(failure.reason).inc()
        raise failure

    async def _create_or_check_with_retries(self, namespace: str, caller: str) -> str:
        """`created` or `present`; retried as the API server asks for it."""
        while True:
            try:
                return await self._in_thread(caller, self._create_or_check, namespace)
            except ApiException as error:
                if error.status != 429 and get_reason(error) != "Conflict":
                    raise
                await asyncio.sleep(_retry_after(error))

    async def _in_thread(self, caller: str, function: Callable[[str], str], namespace: str) -> str:
        await self._turns.acquire(caller)
        future = asyncio.get_running_loop().run_in_executor(self._threads, function, namespace)
        future.add_done_callback(self._finish_call)
        return await asyncio.shield(future)  # a thread cannot be cancelled

    def _finish_call(self, future: asyncio.Future[str]) -> None:
        self._turns.release()
        _retrieve(future)

    def _create_or_check(self, namespace: str) -> str:
        for _ in range(_MAX_RACES):
            present, may_exist = self._look(namespace)
            if present is not None:
                self._validate(namespace, present)
                return "present"
            if self._create(namespace):
                return "created"
            if may_exist:
                raise self._conflict(
                    namespace,
                    "exists, but may not be checked: it lacks the injector's label or is not "
                    "immutable",
                )
        raise self._unavailable(namespace, "other clients keep creating and deleting it")

    def _look(self, namespace: str) -> tuple[Any, bool]:
        """The ConfigMap if it exists, and whether it may exist although it was not returned.

        An empty patch changes nothing and returns the object, without the right to read it. The
        chart's policies reject it if the object lacks the injector's label or is not immutable.
        """
        try:
            return self._call("PATCH", f"{_PATH}/{{name}}", namespace, {}), False
        except ApiException as error:
            if error.status == 404:
                return None, False
            if _is_denied(error):
                return None, True
            raise

    def _create(self, namespace: str) -> bool:
        """Create it; False if it exists already."""
        try:
            self._call("POST", _PATH, namespace, self._config_map)
        except ApiException as error:
            if get_reason(error) != "AlreadyExists":
                raise
            return False
        return True

    def _call(self, method: str, path: str, namespace: str, body: Any) -> Any:
        return call(
            self._api,
            method,
            path,
            names={"namespace": namespace, "name": self._config_map["metadata"]["name"]},
            body=body,
            content_type="application/json" if body else "application/merge-patch+json",
            timeout=_API_TIMEOUT,
        )[0]

    def _validate(self, namespace: str, present: Any) -> None:
        """Raise InjectionError unless pods that mount this object run exactly our files."""
        has_same_files = present.get("data") == self._config_map["data"]
        reason = find_unusable(present, has_same_files=has_same_files)
        if reason is Unusable.DELETED:
            raise self._unavailable(namespace, f"it {reason}")
        if reason:
            raise self._conflict(namespace, _CONFLICTS[reason])

    def _conflict(self, namespace: str, problem: str) -> InjectionError:
        name = self._config_map["metadata"]["name"]
        return InjectionError(
            f"ConfigMap {namespace}/{name}",
            problem,
            fix=f"delete it: kubectl delete configmap -n {namespace} {name}",
            reason=Reason.RUNTIME_CONFIGMAP_CONFLICT,
        )

    def _unavailable(
        self, namespace: str, cause: str, fix: str = "the next pod retries"
    ) -> InjectionError:
        return InjectionError(
            f"ConfigMap {namespace}/{self._config_map['metadata']['name']}",
            f"could not be created or checked: {cause}",
            fix=fix,
            reason=Reason.RUNTIME_CONFIGMAP_UNAVAILABLE,
        )

    def _describe_failure(self, namespace: str, error: ApiException | HTTPError) -> InjectionError:
        """A rejection that does not disclose the API server's answer, which is logged.

        Anybody can ask for any namespace, and the answer may name quotas, policies and namespaces.
        """
        logger.warning(
            "cannot ensure the runtime ConfigMap",
            extra={
                "namespace": namespace,
                "status": getattr(error, "status", None),
                "error": describe_error(error),
            },
        )
        if isinstance(error, ApiException) and (error.status == 404 or _is_denied(error)):
            return self._unavailable(
                namespace,
                "the API server rejected it",
                "check the namespace's quotas and policies for ConfigMaps and the injector's "
                "permissions; the injector's log has the API server's answer",
            )
        return self._unavailable(
            namespace,
            "the API server failed or did not answer",
            "the next pod retries; the injector's log has details",
        )


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Retrieve an exception: asyncio logs those of futures that nothing waits for."""
    if not future.cancelled():
        future.exception()


def _is_denied(error: ApiException) -> bool:
    """Whether rights, a quota, a policy or another webhook rejected the call."""
    return 400 <= (error.status or 0) < 500 and error.status not in (404, 409, 429)


def _retry_after(error: ApiException) -> float:
    """Seconds to wait, from https://httpwg.org/specs/rfc9110#field.retry-after ."""
    text = str((error.headers or {}).get("Retry-After", ""))
    return float(text) if text.isascii() and text.isdigit() else 0.1
