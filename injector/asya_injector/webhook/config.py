"""The settings of the injector process, read once from the environment and validated at start."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

from asya_injector.annotations.sidecar import SIDECAR_VARIABLE, SidecarError, SidecarTemplate
from asya_injector.runtime_image import (
    DEFAULT_PULL_POLICY,
    IMAGE_VARIABLE,
    PULL_POLICIES,
    RUNTIME_IMAGE_VARIABLE,
    Delivery,
    RuntimeImage,
)

T = TypeVar("T")


class ConfigError(Exception):
    """A setting is missing or invalid: one line that names it and says what is valid."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings. The chart sets these variables.

    namespace: `INJECTOR_NAMESPACE`, the release's namespace.
    tls_mode: `INJECTOR_TLS_MODE`; `self`: this process issues the certificate; `files`: another
        program does, and this process writes neither a Secret nor `caBundle`.
    service: `INJECTOR_SERVICE`, name of the Service that the API server calls.
    webhook_configuration: `INJECTOR_WEBHOOK_CONFIGURATION`, whose `caBundle` is kept up to date.
        Only with `self`.
    tls_secret: `INJECTOR_TLS_SECRET`, Secret with CA and certificate. Only with `self`.
    tls_directory: `INJECTOR_TLS_DIRECTORY`, mounted Secret with `tls.crt` and `tls.key`. Only with
        `files`.
    runtime_directory: `INJECTOR_RUNTIME_DIRECTORY`, the runtime files: a mounted ConfigMap, or a
        folder of this process's image.
    delivery: `INJECTOR_RUNTIME_IMAGE` with `INJECTOR_RUNTIME_PULL_POLICY`, the image that pods
        mount, if they do not mount a ConfigMap; then `INJECTOR_IMAGE` is that of this process.
    defaults: `INJECTOR_DEFAULTS`, JSON object of annotation names (without prefix) and values.
    sidecar: `INJECTOR_SIDECAR`, JSON object of the chart's value `sidecar`; None without one.
    webhook_port, http_port: `INJECTOR_WEBHOOK_PORT`, TLS for the API server; `INJECTOR_HTTP_PORT`,
        plain HTTP for probes and metrics.
    log_level: `INJECTOR_LOG_LEVEL`, a level of Python's `logging` in any case.
    """

    namespace: str
    tls_mode: str
    service: str
    webhook_configuration: str
    tls_secret: str
    tls_directory: Path
    runtime_directory: Path
    delivery: Delivery
    defaults: Mapping[str, str]
    sidecar: SidecarTemplate | None
    webhook_port: int
    http_port: int
    log_level: str

    @property
    def dns_names(self) -> list[str]:
        """The Service's DNS names; the API server calls the first."""
        short = f"{self.service}.{self.namespace}"
        return [f"{short}.svc", short, f"{short}.svc.cluster.local"]

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Read all settings; raises ConfigError for the first that is missing or invalid."""

        def read(name: str, parse: Callable[[str], T], default: str | None = None) -> T:
            text = environ.get(name) or default
            if text is None:
                raise ConfigError(f"{name} is not set; the chart sets it")
            try:
                return parse(text)
            except ValueError as error:
                raise ConfigError(f"{name}: {text[:200]!r} is not valid; must be {error}") from None

        tls_mode = read("INJECTOR_TLS_MODE", _tls_mode, "self")
        unused = None if tls_mode == "self" else "-"
        pull_policy = read("INJECTOR_RUNTIME_PULL_POLICY", _pull_policy, DEFAULT_PULL_POLICY)
        image = read(
            RUNTIME_IMAGE_VARIABLE,
            lambda text: RuntimeImage(text, pull_policy) if text else None,
            "",
        )
        return cls(
            namespace=read("INJECTOR_NAMESPACE", str),
            tls_mode=tls_mode,
            service=read("INJECTOR_SERVICE", str),
            webhook_configuration=read("INJECTOR_WEBHOOK_CONFIGURATION", str, unused),
            tls_secret=read("INJECTOR_TLS_SECRET", str, unused),
            tls_directory=read("INJECTOR_TLS_DIRECTORY", Path, "/tls"),
            runtime_directory=read("INJECTOR_RUNTIME_DIRECTORY", Path, "/etc/asya-runtime"),
            delivery=Delivery(image, read(IMAGE_VARIABLE, str)) if image else Delivery(),
            defaults=read("INJECTOR_DEFAULTS", _defaults, "{}"),
            sidecar=_read_sidecar(environ.get(SIDECAR_VARIABLE) or "{}"),
            webhook_port=read("INJECTOR_WEBHOOK_PORT", _port, "9443"),
            http_port=read("INJECTOR_HTTP_PORT", _port, "8080"),
            log_level=read("INJECTOR_LOG_LEVEL", _log_level, "info"),
        )


def _read_sidecar(text: str) -> SidecarTemplate | None:
    try:
        return SidecarTemplate.parse(json.loads(text))
    except SidecarError as error:
        raise ConfigError(f"{SIDECAR_VARIABLE}: {error}") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{SIDECAR_VARIABLE}: is not JSON; the chart sets it") from None


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) < 6 and 1 <= int(text) <= 65535:
        return int(text)
    raise ValueError("a port from 1 to 65535")


def _tls_mode(text: str) -> str:
    if text in {"self", "files"}:
        return text
    raise ValueError("self or files")


def _pull_policy(text: str) -> str:
    if text in PULL_POLICIES:
        return text
    raise ValueError(", ".join(PULL_POLICIES))


def _log_level(text: str) -> str:
    if text.upper() in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        return text.upper()
    raise ValueError("debug, info, warning or error")


def _defaults(text: str) -> dict[str, str]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict) and all(isinstance(each, str) for each in value.values()):
        return value
    raise ValueError("a JSON object of annotation names and string values")
