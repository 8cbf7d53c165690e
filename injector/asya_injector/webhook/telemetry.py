"""What there is to watch. The names and labels are a promise: docs/operations.md lists them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from asya_injector import __version__
from asya_injector.tls.watcher import Identity

_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """All of them, in a registry of their own, so that tests can have several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.admissions = Counter(
            "asya_injector_admissions",
            "Reviews answered, by kind of object, result and reason code.",
            ("resource", "result", "reason"),
            registry=self.registry,
        )
        self.duration = Histogram(
            "asya_injector_admission_duration_seconds",
            "Time from a review's arrival to its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.bad_requests = Counter(
            "asya_injector_bad_requests",
            "Requests to the webhook's port that were no review, by HTTP status.",
            ("code",),
            registry=self.registry,
        )
        self.payload_writes = Counter(
            "asya_injector_payload_writes",
            "Times that a namespace was asked for its ConfigMap, by what came of it.",
            ("result",),
            registry=self.registry,
        )
        self.certificate_expiry = Gauge(
            "asya_injector_certificate_expiry_timestamp_seconds",
            "When the certificate that is shown ends, as Unix time; 0 while there is none.",
            registry=self.registry,
        )
        self.build = Info(
            "asya_injector_build",
            "Version of the injector and hash of the runtime that it brings.",
            registry=self.registry,
        )

    def describe(self, *, runtime_hash: str, identity: Identity) -> None:
        """Fill in what is known from the start, and where the rest is looked up."""
        self.build.info({"version": __version__, "runtime_hash": runtime_hash})
        self.certificate_expiry.set_function(
            lambda: identity.expires.timestamp() if identity.expires else 0.0
        )
