"""The kopf handlers, called without kopf and without a server."""

import asyncio
import base64
import copy
import json
import threading
from typing import Any
from unittest import mock

import kopf
import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.annotations.sidecar import SidecarTemplate
from asya_injector.errors import InjectionError, Reason
from asya_injector.mutation.inject import inject
from asya_injector.runtime_image import RuntimeImage
from asya_injector.webhook.admission import PODS, WORKLOADS, Webhook, build_registry
from asya_injector.webhook.review import Review, current_review

HANDLER = {"asya.sh/handler": "app.predict"}
POD: dict[str, Any] = {
    "kind": "Pod",
    "metadata": {"name": "p", "annotations": HANDLER},
    "spec": {"containers": [{"name": "model", "command": ["python3", "app.py"]}]},
}
DEPLOYMENT: dict[str, Any] = {
    "kind": "Deployment",
    "metadata": {"name": "d", "annotations": HANDLER},
    "spec": {"template": {"spec": POD["spec"]}},
}
UNAVAILABLE = InjectionError("x", "y", fix="z", reason=Reason.RUNTIME_CONFIGMAP_UNAVAILABLE)


def make_review(item: Any, **fields: Any) -> Review:
    return Review(
        uid="u",
        resource=("", "v1", "pods"),
        subresource="",
        operation="CREATE",
        namespace="models",
        object=copy.deepcopy(item),
        **{"dry_run": False} | fields,
    )


class Handlers:
    """The handlers by path, and the calls for a ConfigMap and for the API server's version."""

    def __init__(
        self, image: RuntimeImage | None = None, sidecar: SidecarTemplate | None = None
    ) -> None:
        self.configmaps = mock.AsyncMock()
        self.image_volumes = mock.AsyncMock()
        defaults = ClusterDefaults("0123456789", {}, image=image, sidecar=sidecar)
        webhook = Webhook(defaults, self.configmaps, self.image_volumes)
        registry = build_registry(webhook)
        self._functions: dict[Any, Any] = {
            handler.id: handler.fn for handler in registry._webhooks.get_all_handlers()
        }

    async def admit(self, review: Review, path: str = PODS) -> list[str]:
        """Returns the warnings."""
        warnings: list[str] = []
        current_review.set(review)
        await self._functions[path](warnings=warnings)
        return warnings


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


async def test_frees_the_object_before_it_waits_for_the_configmap(handlers: Handlers) -> None:
    review = make_review(POD, caller="10.0.0.1", deadline=asyncio.get_running_loop().time() + 600)
    dropped: list[Any] = []
    review.on_drop = lambda: dropped.append(review.patch)

    async def ensure(namespace: str, *, within: float, caller: str) -> None:
        assert (namespace, caller, review.object) == ("models", "10.0.0.1", {})
        assert within == pytest.approx(600, abs=200)
        assert dropped == [review.patch]

    handlers.configmaps.ensure.side_effect = ensure
    await handlers.admit(review)
    assert review.result == "changed"
    assert json.loads(base64.b64decode(review.patch))
    handlers.configmaps.ensure.assert_awaited_once()


@pytest.mark.parametrize(
    ("item", "path", "fields"),
    [
        (POD, PODS, {"dry_run": True}),
        (POD | {"metadata": {}}, PODS, {}),
        (DEPLOYMENT, WORKLOADS, {}),
    ],
    ids=["dry run", "not annotated", "workload"],
)
def test_answers_at_once_without_a_configmap(
    handlers: Handlers, item: Any, path: str, fields: Any
) -> None:
    """Not even other reviews run in between, so only one object at a time takes memory."""
    review = make_review(item, **fields)
    with pytest.raises(StopIteration):
        handlers.admit(review, path).send(None)
    assert review.object == {}
    handlers.configmaps.ensure.assert_not_called()


@pytest.mark.parametrize(
    ("item", "path", "fields", "is_actor"),
    [
        (POD, PODS, {}, True),
        (POD, PODS, {"dry_run": True}, True),
        (DEPLOYMENT, WORKLOADS, {}, True),
        (POD | {"metadata": {}}, PODS, {}, False),
        (DEPLOYMENT | {"metadata": {}}, WORKLOADS, {}, False),
    ],
)
async def test_with_an_image_only_the_version_of_the_api_server_is_checked(
    item: Any, path: str, fields: Any, is_actor: bool
) -> None:
    handlers = Handlers(RuntimeImage("asya/injector:1"))
    await handlers.admit(make_review(item, **fields), path)
    assert handlers.image_volumes.ensure.await_count == is_actor
    handlers.configmaps.ensure.assert_not_called()


@pytest.mark.parametrize("error", [UNAVAILABLE, ZeroDivisionError()])
async def test_a_rejection_has_no_patch(handlers: Handlers, error: Exception) -> None:
    handlers.configmaps.ensure.side_effect = error
    review = make_review(POD)
    with pytest.raises(kopf.AdmissionError):
        await handlers.admit(review)
    assert (review.patch, review.object) == ("", {})
    assert review.result == ("rejected" if error is UNAVAILABLE else "failed")


@pytest.mark.parametrize(("item", "path"), [(POD, PODS), (DEPLOYMENT, WORKLOADS)])
@pytest.mark.parametrize("is_large", [True, False])
async def test_injects_large_objects_in_a_thread(
    handlers: Handlers, monkeypatch: pytest.MonkeyPatch, item: Any, path: str, is_large: bool
) -> None:
    threads: list[int] = []

    def record(*args: Any) -> Any:
        threads.append(threading.get_ident())
        return inject(*args)

    monkeypatch.setattr("asya_injector.webhook.admission.inject", record)
    await handlers.admit(make_review(item, is_large=is_large), path)
    assert (threads != [threading.get_ident()]) is is_large


# --- The sidecar of the chart

# As many as a workload may have beside those of the table.
DECLARED = {f"asya.sh/key-{number}": {"env": f"KEY_{number}"} for number in range(50)}
QUEUE = {"asya.sh/key-0": {"env": "KEY_0", "required": True}}
SIDECAR = SidecarTemplate.parse(
    {
        "container": {"name": "asya-sidecar", "image": "queue:1"},
        "annotations": DECLARED | QUEUE,
    }
)


@pytest.mark.parametrize(
    ("annotations", "rejection"),
    [
        (dict.fromkeys(DECLARED, "x"), ""),
        ({"asya.sh/key-0": "x", "asya.sh/sidecar-env": "KEY_1=x"}, "SidecarEnvConflict"),
        ({"asya.sh/key-1": "x"}, "AnnotationMissing"),
        (dict.fromkeys(DECLARED, "x") | {"asya.sh/kee-0": "x"}, "AnnotationUnknown"),
    ],
)
async def test_a_workload_is_checked_for_the_sidecar(
    annotations: dict[str, str], rejection: str
) -> None:
    metadata = {"name": "d", "annotations": HANDLER | annotations}
    review = make_review(DEPLOYMENT | {"metadata": metadata})
    handlers = Handlers(sidecar=SIDECAR)
    if rejection:
        with pytest.raises(kopf.AdmissionError, match=rejection):
            await handlers.admit(review, WORKLOADS)
    else:
        await handlers.admit(review, WORKLOADS)
        assert "asya.sh/key-49" in base64.b64decode(review.patch).decode()
    assert review.reason == rejection
