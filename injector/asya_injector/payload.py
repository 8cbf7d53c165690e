"""The ConfigMap that pods mount: named by its content, immutable, made where a pod needs it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubernetes.client import ApiClient, CoreV1Api
from kubernetes.client.exceptions import ApiException
from urllib3.exceptions import HTTPError

from asya_injector.annotations import RUNTIME_HASH_LABEL
from asya_injector.policy import ENTRYPOINT_FILE, RUNTIME_FILE, RUNTIME_VOLUME
from asya_injector.refusal import Reason, Refusal, quoted

MANAGED_BY = {"app.kubernetes.io/managed-by": "asya-injector"}
# A review has 5 seconds in all; an API server that needs longer than this gets no third call.
_API_TIMEOUT = (1, 1.5)
# Long enough to make one call of a burst of pods, too short for a namespace to be deleted and made
# anew, or a copy to be deleted by hand, and the pods after that to wait for it for ever.
_REMEMBERED_SECONDS = 1.0


@dataclass(frozen=True)
class Payload:
    """The runtime's files, by name, and the hash that names them.

    The hash is the first 10 hex digits of what `sha256sum *.py | sha256sum` says in a directory
    that holds them; the chart's ConfigMap has the whole of it as an annotation.
    """

    files: Mapping[str, str]

    @classmethod
    def load(cls, directory: Path) -> Payload:
        """Read both files of the runtime; raises OSError or UnicodeDecodeError."""
        names = (RUNTIME_FILE, ENTRYPOINT_FILE)
        return cls({name: (directory / name).read_bytes().decode() for name in names})

    @property
    def hash(self) -> str:
        """What tells two versions of the runtime apart."""
        sums = "".join(
            f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n"
            for name, text in sorted(self.files.items())
        )
        return hashlib.sha256(sums.encode()).hexdigest()[:10]

    def config_map(self) -> dict[str, Any]:
        """The object that each namespace with an actor holds."""
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": f"{RUNTIME_VOLUME}-{self.hash}",
                "labels": MANAGED_BY | {RUNTIME_HASH_LABEL: self.hash},
            },
            "immutable": True,
            "data": dict(self.files),
        }


class Publisher:
    """Makes sure that a namespace holds the ConfigMap before a pod that mounts it is let in.

    What was ensured is remembered for a second a namespace; calls for one namespace wait for each
    other, so that many pods at once cost one API call.
    """

    def __init__(
        self, payload: Payload, api: ApiClient, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config_map = payload.config_map()
        self._api: Any = CoreV1Api(api)
        self._clock = clock
        self._ensured: dict[str, float] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def ensure(self, namespace: str) -> bool:
        """Whether the ConfigMap had to be looked for; raises Refusal where it cannot be had."""
        lock = self._locks.setdefault(namespace, asyncio.Lock())
        try:
            async with lock:
                now = self._clock()
                self._ensured = {name: end for name, end in self._ensured.items() if end > now}
                if namespace in self._ensured:
                    return False
                await asyncio.to_thread(self._write, namespace)
                self._ensured[namespace] = self._clock() + _REMEMBERED_SECONDS
                return True
        finally:
            if not lock.locked():
                self._locks.pop(namespace, None)

    def _write(self, namespace: str) -> None:
        name = self._config_map["metadata"]["name"]
        where = f"ConfigMap {namespace}/{name}"
        try:
            present = self._create_or_read(namespace, name)
        except ApiException as error:
            raise Refusal(
                where,
                f"cannot be written: {quoted(_api_message(error))}",
                fix="let the injector create it (rights, quota), or create it by hand",
                reason=Reason.PAYLOAD_UNAVAILABLE,
            ) from None
        except HTTPError:
            raise Refusal(
                where,
                "cannot be written: the API server did not answer the injector in time",
                fix="it is tried again with the next pod",
                reason=Reason.PAYLOAD_UNAVAILABLE,
            ) from None
        if present.data != self._config_map["data"]:
            raise Refusal(
                where,
                "exists with other content, which pods would run",
                fix=f"delete it: kubectl delete configmap -n {namespace} {name}",
                reason=Reason.PAYLOAD_CONFLICT,
            )

    def _create_or_read(self, namespace: str, name: str) -> Any:
        try:
            return self._api.create_namespaced_config_map(
                namespace, self._config_map, _request_timeout=_API_TIMEOUT
            )
        except ApiException as error:
            if error.status != 409:
                raise
        # An empty patch changes nothing and returns the object: reading without the right to read.
        return self._api.patch_namespaced_config_map(
            name,
            namespace,
            {},
            _content_type="application/merge-patch+json",
            _request_timeout=_API_TIMEOUT,
        )


def _api_message(error: ApiException) -> str:
    """The API server's own sentence, else its status line."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, TypeError, KeyError):
        return f"{error.status} {error.reason}"
