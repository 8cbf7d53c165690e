"""How the injector finds out whether the API server supports image volumes."""

import asyncio
import threading
from typing import Any

import pytest
from asya_injector.errors import InjectionError
from asya_injector.kube_client import ApiClient
from asya_injector.webhook import image_volumes
from asya_injector.webhook.image_volumes import ImageVolumeSupport

from tests.support.api_server import Answer, Api, failure

REJECTION = (
    "runtime.delivery: image volumes require Kubernetes 1.36, but the API server has version {}; "
    "upgrade it, or set this value of the chart to configMap (KubernetesUnsupported)"
)

WARNING = "cannot read the version of the API server"


class Support:
    """The check, with a clock that tests move, and the stand-in API server."""

    def __init__(self, api: Api, connection: ApiClient) -> None:
        self.api = api
        self.now = 100.0
        self._checked = ImageVolumeSupport(connection, clock=lambda: self.now)

    async def ask(self, *, within: float = 60.0) -> str:
        """The rejection; empty if there is none."""
        try:
            await self._checked.ensure(within=within)
        except InjectionError as error:
            return str(error)
        return ""

    async def ask_after(self, seconds: float) -> str:
        self.now += seconds
        return await self.ask()

    @property
    def requests(self) -> int:
        return self.api.discovered.count("/version")


@pytest.fixture
def support(api: Api, connection: ApiClient, monkeypatch: pytest.MonkeyPatch) -> Support:
    monkeypatch.setattr(image_volumes, "_API_TIMEOUT", (30, 60))
    monkeypatch.setattr(image_volumes, "_MAX_WAIT", 60.0)  # for a stand-in on a busy machine
    return Support(api, connection)


@pytest.mark.parametrize(
    ("version", "too_old"),
    [
        (("1", "36"), ""),
        (("1", "36+"), ""),
        (("1", "140"), ""),
        (("2", "0"), ""),
        (("1", "35"), "1.35"),
        (("1", "9+"), "1.9"),
        # Of an API server whose version cannot be read, the answer to the pod is awaited.
        (("", ""), ""),
        (("one", "30"), ""),
    ],
)
async def test_rejects_below_the_first_version_that_supports_them(
    support: Support, version: Any, too_old: str, caplog: pytest.LogCaptureFixture
) -> None:
    support.api.version = version
    assert await support.ask() == (REJECTION.format(too_old) if too_old else "")
    is_unreadable = not version[0].isdigit()
    assert [each.message for each in caplog.records] == [WARNING] * is_unreadable


async def test_concurrent_reviews_share_one_request_and_its_answer_is_cached(
    support: Support,
) -> None:
    assert set(await asyncio.gather(*(support.ask() for _ in range(50)))) == {
        REJECTION.format("1.34")
    }
    assert support.requests == 1
    await support.ask_after(4.9)
    assert support.requests == 1


async def test_an_upgraded_api_server_is_noticed_in_seconds_and_then_asked_once_a_minute(
    support: Support,
) -> None:
    assert await support.ask() == REJECTION.format("1.34")
    support.api.version = ("1", "36")
    assert await support.ask_after(5.0) == ""
    support.api.version = ("1", "35")  # a replica that is not upgraded yet
    assert await support.ask_after(59.9) == ""
    assert support.requests == 2
    assert await support.ask_after(0.1) == REJECTION.format("1.35")


@pytest.mark.parametrize(
    "answer",
    [failure(403, "Forbidden", "no"), failure(500, "InternalError", "no"), Answer(200, b"?")],
)
@pytest.mark.parametrize("known", [("1", "34"), ("1", "36"), None])
async def test_without_an_answer_the_last_known_version_counts(
    support: Support, answer: Answer, known: Any, caplog: pytest.LogCaptureFixture
) -> None:
    if known:
        support.api.version = known
        await support.ask()

    def fault(*_: Any) -> None:
        raise answer

    support.api.fault = fault
    expected = REJECTION.format("1.34") if known == ("1", "34") else ""
    assert await support.ask_after(60.0) == expected
    assert [each.message for each in caplog.records] == [WARNING]
    before = support.requests
    assert await support.ask_after(4.9) == expected
    assert support.requests == before


async def test_a_slow_answer_does_not_take_the_time_of_the_review(support: Support) -> None:
    release = threading.Event()

    def fault(*_: Any) -> None:
        release.wait(60)

    support.api.fault = fault
    assert await asyncio.wait_for(support.ask(within=0.05), 30) == ""
    release.set()
    assert await support.ask() == REJECTION.format("1.34")
    assert support.requests == 1
