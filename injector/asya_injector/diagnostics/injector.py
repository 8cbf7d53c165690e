"""Checks of the injector itself, from objects of the cluster. This module does no I/O."""

import base64
import binascii
import datetime as dt
from collections.abc import Iterable, Iterator, Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from asya_injector.diagnostics.results import Finding
from asya_injector.kube_objects import Object, find_by_name, get_items, get_mapping
from asya_injector.runtime_files import CHART_SHA256, MANAGED_BY, RuntimeFiles, find_unusable

POD_WEBHOOK = "pods.asya.sh"
# The injector renews its certificate 30 days before it expires, cert-manager after two thirds of
# its lifetime.
_MIN_LIFETIME = dt.timedelta(days=14)


def find_webhook_configurations(configurations: Iterable[Object]) -> list[Object]:
    """Find the webhook configurations that call the injector."""
    return [
        item for item in configurations if find_by_name(get_items(item, "webhooks"), POD_WEBHOOK)
    ]


def find_service(configurations: Iterable[Object]) -> tuple[str, str]:
    """Namespace and name of the Service that the API server calls; empty if there is none."""
    for item in configurations:
        webhook = find_by_name(get_items(item, "webhooks"), POD_WEBHOOK)
        if webhook:
            service = get_mapping(webhook, "clientConfig", "service")
            return str(service.get("namespace") or ""), str(service.get("name") or "")
    return "", ""


def check_webhooks(configurations: Sequence[Object]) -> Finding:
    """Check that exactly one configuration calls the injector, each webhook with a caBundle."""
    names = [str(get_mapping(item, "metadata").get("name")) for item in configurations]
    if not configurations:
        return Finding(
            f"no webhook configuration contains {POD_WEBHOOK}: annotated pods are not injected",
            "helm install asya-runtime, unless you only use `asya-injector inject`",
        )
    if len(configurations) > 1:
        problem = f"more than one configuration calls the injector: {', '.join(names)}"
        return Finding(problem, "uninstall all but one")
    incomplete = [
        str(webhook.get("name"))
        for webhook in configurations[0]["webhooks"]
        if not get_mapping(webhook, "clientConfig").get("caBundle")
    ]
    if incomplete:
        problem = f"{names[0]} has no caBundle for {', '.join(incomplete)}"
        return Finding(
            f"{problem}: the API server cannot call the injector",
            "the injector writes it within seconds; if not, see its log",
        )
    return Finding(f"{names[0]} is installed")


def check_deployments(items: Sequence[Object]) -> Iterator[Finding]:
    """Check that all replicas of the injector are available."""
    if not items:
        yield Finding("Deployment not found", "helm upgrade the release")
    for item in items:
        metadata = get_mapping(item, "metadata")
        desired = get_mapping(item, "spec").get("replicas", 1)
        available = get_mapping(item, "status").get("availableReplicas") or 0
        name = f"{metadata.get('namespace')}/{metadata.get('name')}"
        fix = f"kubectl -n {metadata.get('namespace')} describe deployment,pods"
        yield Finding(
            f"Deployment {name}: {available} of {desired} replicas available",
            "" if desired and available >= desired else fix,
        )


def check_endpoints(slices: Iterable[Object], service: str) -> Finding:
    """Check that the Service that the API server calls has ready addresses."""
    ready = {
        address
        for each in slices
        for endpoint in each.get("endpoints") or []
        if get_mapping(endpoint, "conditions").get("ready") is not False
        for address in endpoint.get("addresses") or []
    }
    if ready:
        return Finding(f"Service {service}: ready addresses: {len(ready)}")
    return Finding(
        f"Service {service} has no ready address: annotated pods are rejected",
        "check why the injector's pods are not ready",
    )


def check_certificate(
    data: Object, bundles: Sequence[str], *, host: str, now: dt.datetime, secret: str
) -> Finding:
    """Check that the certificate is valid now, for this host, and signed by a CA of each bundle.

    data: of its Secret. bundles: the base64 `caBundle` of each webhook. secret: its name.
    """
    fix = "see the injector's log; delete the Secret to have it reissued"
    try:
        chain = x509.load_pem_x509_certificates(base64.b64decode(data["tls.crt"], validate=True))
        trusted = [x509.load_pem_x509_certificates(base64.b64decode(each)) for each in bundles]
        names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except KeyError:
        return Finding(f"{secret}: has no tls.crt", fix)
    except (ValueError, TypeError, binascii.Error, x509.ExtensionNotFound):
        return Finding(f"{secret}: the certificate or caBundle cannot be parsed", fix)
    end = chain[0].not_valid_after_utc
    problems = {
        f"expired on {end:%Y-%m-%d}": now > end,
        "is not valid yet": now < chain[0].not_valid_before_utc,
        f"is not valid for {host}": host not in names.get_values_for_type(x509.DNSName),
        "is not signed by a CA in caBundle": not all(
            any(_is_issued_by(each, authority) for each in chain for authority in bundle)
            for bundle in trusted
        ),
        f"expires on {end:%Y-%m-%d} and should have been renewed": end - now < _MIN_LIFETIME,
    }
    for problem, applies in problems.items():
        if applies:
            return Finding(f"{secret}: {problem}", fix)
    return Finding(f"{secret}: valid until {end:%Y-%m-%d}, signed by a CA in caBundle")


def check_versions(charts: Sequence[Object], installed: RuntimeFiles) -> Iterator[Finding]:
    """Check that the chart's ConfigMaps are intact and have the runtime of this program."""
    for item in charts:
        metadata = get_mapping(item, "metadata")
        name = f"ConfigMap {metadata.get('namespace')}/{metadata.get('name')}"
        sha256 = str(get_mapping(metadata, "annotations").get(CHART_SHA256))
        if RuntimeFiles(item.get("data") or {}).sha256 != sha256:
            yield Finding(
                f"{name}: the content does not match its annotation {CHART_SHA256}",
                "helm upgrade the release; only the chart should write this ConfigMap",
            )
        elif sha256 != installed.sha256:
            yield Finding(
                f"{name} has runtime {sha256[:10]}, this program has {installed.hash}",
                "use the same version of the program and the chart",
            )
        else:
            yield Finding(f"{name} and this program have runtime {sha256[:10]}")


def _is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return certificate == authority
    return True


def check_copies(items: Iterable[Object], version: str) -> Iterator[Finding]:
    """Report the runtime ConfigMaps of a version that keep annotated pods away.

    items: all ConfigMaps with its name.
    """
    for item in items:
        problem = _find_conflict(item, version)
        if problem:
            metadata = get_mapping(item, "metadata")
            namespace, name = metadata.get("namespace"), metadata.get("name")
            yield Finding(
                f"{namespace}/{name}: {problem}: annotated pods are rejected there",
                f"kubectl delete configmap -n {namespace} {name}",
            )


def _find_conflict(item: Object, version: str) -> str:
    """What the injector does not accept in a runtime ConfigMap of a version; empty if nothing."""
    has_same_files = RuntimeFiles(item.get("data") or {}).hash == version
    reason = find_unusable(item, has_same_files=has_same_files)
    is_labelled = MANAGED_BY.items() <= get_mapping(item, "metadata", "labels").items()
    return reason or ("" if is_labelled else "lacks the injector's label")
