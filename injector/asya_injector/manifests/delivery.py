"""What pods mount: the chart's `runtime.delivery`, from a file of values or from options."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from asya_injector import __version__
from asya_injector.documents.document import ManifestError
from asya_injector.kube_objects import Object, get_in
from asya_injector.runtime_image import (
    CONFIG_MAP,
    DEFAULT_PULL_POLICY,
    DELIVERIES,
    IMAGE,
    Delivery,
    RuntimeImage,
)


class DeliveryError(Exception):
    """Options that contradict each other, or miss something: one line."""


def choose_delivery(
    values: Object,
    path: Path | None,
    *,
    delivery: str | None = None,
    reference: str | None = None,
) -> Delivery:
    """Decide by the options, and by chart values where an option is missing.

    path: of the file of these values, for errors. Raises DeliveryError or ManifestError.
    """
    runtime, injector = get_in(values, "runtime"), get_in(values, "injector", "image")
    chosen = delivery or runtime.get("delivery") or CONFIG_MAP
    if chosen not in DELIVERIES:
        raise ManifestError(f"{path}: runtime.delivery must be {' or '.join(DELIVERIES)}")
    if chosen != IMAGE:
        if reference:
            raise DeliveryError(f"--runtime-image: has no effect without --delivery {IMAGE}")
        return Delivery()
    given = get_in(runtime, "image")
    own = _build_reference(injector)
    found = reference or _build_reference(given) or own
    if not found:
        raise DeliveryError(
            f"--delivery {IMAGE}: name the image with --runtime-image, or with --values FILE that "
            "sets injector.image or runtime.image"
        )
    policy = given.get("pullPolicy") or injector.get("pullPolicy") or DEFAULT_PULL_POLICY
    try:
        return Delivery(RuntimeImage(found, str(policy)), own)
    except ValueError as error:
        where = "--runtime-image" if reference else f"{path}: runtime.image"
        raise DeliveryError(f"{where}: is not valid; must be {error}") from None


def _build_reference(image: Mapping[str, Any]) -> str:
    """The reference of an image of the chart's values, as the chart writes it."""
    if not image.get("repository"):
        return ""
    digest = f"@{image['digest']}" if image.get("digest") else ""
    return f"{image['repository']}:{image.get('tag') or __version__}{digest}"
