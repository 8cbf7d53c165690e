"""Whether the API server supports image volumes, by its version."""

import asyncio
import logging
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from asya_injector.errors import InjectionError, Reason
from asya_injector.kube_client import ApiClient, ApiException, HTTPError, call, describe_error
from asya_injector.kube_objects import Object
from asya_injector.runtime_image import MIN_KUBERNETES

logger = logging.getLogger(__name__)

_API_TIMEOUT = (1, 2)
# An API server may be upgraded, and seldom goes back. One that is too old is asked more often, so
# that its pods are soon admitted after an upgrade.
_CACHE_SECONDS = 60.0
_RETRY_SECONDS = 5.0
# An answer that takes longer is awaited by later reviews.
_MAX_WAIT = 1.0


class ImageVolumeSupport:
    """Rejects objects while the API server is too old to store the volume.

    Concurrent reviews share one request, and its answer is cached. While the version is unknown,
    objects are admitted: an API server that does not support the volume rejects the pod itself,
    but with a message that does not say why.
    """

    def __init__(self, api: ApiClient, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._clock = clock
        self._version: tuple[int, int] | None = None
        self._expires = clock()
        self._request: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "version")

    async def ensure(self, *, within: float) -> None:
        """Return if the API server supports the volume; raises InjectionError if it does not.

        within: seconds; the last known version counts if there is no answer by then.
        """
        if self._clock() >= self._expires:
            if self._request is None:
                self._request = asyncio.create_task(self._refresh())
            await asyncio.wait([self._request], timeout=min(within, _MAX_WAIT))
        if self._version and self._version < MIN_KUBERNETES:
            raise InjectionError(
                "runtime.delivery",
                f"image volumes require Kubernetes {_join(MIN_KUBERNETES)}, but the API server has "
                f"version {_join(self._version)}",
                fix="upgrade it, or set this value of the chart to configMap",
                reason=Reason.KUBERNETES_UNSUPPORTED,
            )

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        pause = _RETRY_SECONDS
        try:
            self._version = _parse(await loop.run_in_executor(self._thread, self._read))
            if self._version >= MIN_KUBERNETES:
                pause = _CACHE_SECONDS
        except (ApiException, HTTPError) as error:
            logger.warning(
                "cannot read the version of the API server", extra={"error": describe_error(error)}
            )
        except ValueError as error:
            logger.warning("cannot read the version of the API server", extra={"error": str(error)})
        finally:
            self._expires = self._clock() + pause
            self._request = None

    def _read(self) -> Object:
        return call(self._api, "GET", "/version", timeout=_API_TIMEOUT)[0]


def _parse(answer: Object) -> tuple[int, int]:
    """Major and minor version; vendors append to both, such as 36+."""
    found = [re.match(r"\d{1,5}", str(answer.get(field)), re.ASCII) for field in ("major", "minor")]
    major, minor = (int(each[0]) if each else None for each in found)
    if major is None or minor is None:
        raise ValueError("the answer has no major and minor version")
    return major, minor


def _join(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
