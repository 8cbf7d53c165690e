"""Is the injector in order: what the cluster holds of it, judged. No I/O in this module."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Iterator, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from asya_injector.diagnostics.results import OK, WRONG, CheckResult
from asya_injector.kube_objects import Object, find_by_name, get_items, get_mapping
from asya_injector.runtime_files import CHART_SHA256, RuntimeFiles

POD_WEBHOOK = "pods.asya.sh"
# The injector renews its own thirty days before the end, cert-manager a third of the life.
_LEAST_LIFE = dt.timedelta(days=14)


def webhook_of(configurations: Sequence[Object]) -> tuple[Object | None, CheckResult]:
    """The one webhook configuration that calls the injector, and the finding about it."""
    ours = [
        item for item in configurations if find_by_name(get_items(item, "webhooks"), POD_WEBHOOK)
    ]
    if not ours:
        return None, CheckResult(
            "webhook",
            WRONG,
            f"no configuration with a webhook {POD_WEBHOOK}: annotated pods are not injected",
            "helm install asya-runtime; of no concern where `inject` alone is used",
        )
    name = get_mapping(ours[0], "metadata").get("name")
    if len(ours) > 1:
        names = ", ".join(str(get_mapping(item, "metadata").get("name")) for item in ours)
        return ours[0], CheckResult(
            "webhook", WRONG, f"several configurations call it: {names}", "uninstall all but one"
        )
    without = [
        str(webhook.get("name"))
        for webhook in ours[0]["webhooks"]
        if not get_mapping(webhook, "clientConfig").get("caBundle")
    ]
    if without:
        return ours[0], CheckResult(
            "webhook",
            WRONG,
            f"{name} has no caBundle for {', '.join(without)}: the API server cannot call it",
            "the injector writes it within seconds; its log says why not",
        )
    return ours[0], CheckResult("webhook", OK, f"{name} is in place")


def deployments(found: Sequence[Object]) -> Iterator[CheckResult]:
    """Findings about the Deployments of the injector."""
    if not found:
        yield CheckResult(
            "injector", WRONG, "its Deployment is not there", "helm upgrade the release"
        )
    for item in found:
        metadata = get_mapping(item, "metadata")
        wanted = get_mapping(item, "spec").get("replicas", 1)
        available = get_mapping(item, "status").get("availableReplicas") or 0
        name = f"{metadata.get('namespace')}/{metadata.get('name')}"
        told = f"Deployment {name}: {available} of {wanted} available"
        good = wanted and available >= wanted
        fix = f"kubectl -n {metadata.get('namespace')} describe deployment,pods"
        yield (
            CheckResult("injector", OK, told) if good else CheckResult("injector", WRONG, told, fix)
        )


def endpoints(slices: Sequence[Object], service: str) -> CheckResult:
    """The finding about the addresses behind the Service that the API server calls."""
    ready = {
        address
        for each in slices
        for endpoint in each.get("endpoints") or []
        if get_mapping(endpoint, "conditions").get("ready") is not False
        for address in endpoint.get("addresses") or []
    }
    if not ready:
        return CheckResult(
            "endpoints",
            WRONG,
            f"Service {service} has no ready address: annotated pods are refused",
            "see why no pod of the injector is ready",
        )
    return CheckResult("endpoints", OK, f"Service {service}: {len(ready)} ready")


def certificate(
    data: Object, bundles: Sequence[str], *, host: str, now: dt.datetime, where: str
) -> CheckResult:
    """The finding about the serving certificate: in time, for this host, trusted by the bundles.

    data: of its Secret. bundles: each webhook's `caBundle`, base64. where: the Secret's name.
    """

    def wrong(found: str) -> CheckResult:
        fix = "the injector's log says more; deleted, the Secret is made anew by who made it"
        return CheckResult("certificate", WRONG, f"{where}: {found}", fix)

    try:
        chain = x509.load_pem_x509_certificates(base64.b64decode(data["tls.crt"], validate=True))
        trusted = [x509.load_pem_x509_certificates(base64.b64decode(each)) for each in bundles]
        names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except KeyError:
        return wrong("holds no tls.crt")
    except (ValueError, TypeError, binascii.Error, x509.ExtensionNotFound):
        return wrong("certificate or caBundle cannot be read")
    end = chain[0].not_valid_after_utc
    faults = {
        f"ended on {end:%Y-%m-%d}": now > end,
        "is not valid yet": now < chain[0].not_valid_before_utc,
        f"is not for {host}": host not in names.get_values_for_type(x509.DNSName),
        "is not signed by a CA of caBundle": not all(
            any(_is_issued_by(each, authority) for each in chain for authority in bundle)
            for bundle in trusted
        ),
        f"ends on {end:%Y-%m-%d} and should have been renewed": end - now < _LEAST_LIFE,
    }
    for fault, holds in faults.items():
        if holds:
            return wrong(fault)
    return CheckResult(
        "certificate", OK, f"{where}: valid until {end:%Y-%m-%d}, trusted by caBundle"
    )


def versions(charts: Sequence[Object], installed: RuntimeFiles) -> Iterator[CheckResult]:
    """Findings about the runtime in the chart's ConfigMaps and in this program."""
    for item in charts:
        metadata = get_mapping(item, "metadata")
        name = f"ConfigMap {metadata.get('namespace')}/{metadata.get('name')}"
        said = str(get_mapping(metadata, "annotations").get(CHART_SHA256))
        is_true = RuntimeFiles(item.get("data") or {}).sha256 == said
        if not is_true:
            yield CheckResult(
                "version",
                WRONG,
                f"{name}: its content is not what its {CHART_SHA256} says",
                "helm upgrade the release; nobody else should write it",
            )
        elif said != installed.sha256:
            yield CheckResult(
                "version",
                WRONG,
                f"{name} holds runtime {said[:10]}, this program brings {installed.hash}",
                "use the program and the chart of one version",
            )
        else:
            yield CheckResult("version", OK, f"{name} and this program: runtime {said[:10]}")


def _is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return certificate == authority
    return True
