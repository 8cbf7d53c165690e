"""The commands that read a cluster: `check` and `prune`."""

import dataclasses
import datetime as dt
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from asya_injector.cli.common import EXIT_STATUS, FAILED, CommandError, output_option
from asya_injector.diagnostics.results import OK, UNKNOWN, WRONG, CheckResult
from asya_injector.runtime_files import RuntimeFiles

if TYPE_CHECKING:
    from asya_injector.kube_client import Cluster

# In a pod: the namespace of its service account.
_OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_COLORS = {OK: "green", WRONG: "red", UNKNOWN: "yellow"}

_CHECK_EPILOG = f"""
\b
Examples:
  # check the cluster of the current context
  asya-injector check
  # check the pods and workloads of one namespace, with output for programs
  asya-injector check -n models -o json
{EXIT_STATUS}"""
_PRUNE_EPILOG = f"""
\b
Examples:
  # show what would be deleted, and why the rest is kept
  asya-injector prune --dry-run
  # delete unused ConfigMaps that are older than a day
  asya-injector prune --older-than 1d
{EXIT_STATUS}"""


def _parse_duration(text: str) -> dt.timedelta:
    match = re.fullmatch(r"([0-9]{1,5})([smhd])", text)
    if not match:
        raise click.BadParameter(f"{text!r} is not a duration such as 90s, 10m, 2h or 1d")
    unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[match[2]]
    return dt.timedelta(**{unit: int(match[1])})


_namespace_option = click.option(
    "-n", "--namespace", default="", metavar="NAME", help="Only this namespace. Default: all."
)
_context_option = click.option("--context", metavar="NAME", help="Context of the kubeconfig.")
_kubeconfig_option = click.option(
    "--kubeconfig",
    metavar="FILE",
    help="Clusters and credentials. Default: in a pod, its service account; else $KUBECONFIG or "
    "~/.kube/config, as for kubectl.",
)


@click.command(epilog=_CHECK_EPILOG)
@_namespace_option
@_kubeconfig_option
@_context_option
@output_option("table", "json")
def check(*, namespace: str, kubeconfig: str | None, context: str | None, output: str) -> None:
    """Check the health of an installation and suggest fixes.

    Checks the webhook configuration and its caBundle, the injector's Deployment, endpoints and
    certificate, the versions of the runtime, the admission of a pod (in a dry run), annotated pods
    without the runtime or the chart's sidecar or with an old one, workloads whose annotations are
    not propagated to their pod template, and namespaces whose quota or policies prevent the runtime
    ConfigMap (in a dry run). A check without permission is reported as unknown. Nothing is changed.
    """
    from asya_injector.diagnostics.check import check as run_checks

    runtime = RuntimeFiles.packaged()
    results: list[CheckResult] = []
    with _connect(kubeconfig, context) as cluster:
        for result in run_checks(cluster, runtime, namespace=namespace):
            results.append(result)
            if output == "table":
                _print_row(result)
    if output == "json":
        rows = [dataclasses.asdict(result) for result in results]
        click.echo(json.dumps({"runtime": runtime.hash, "rows": rows}, indent=2))
    if any(result.state != OK for result in results):
        raise SystemExit(FAILED)


@click.command(epilog=_PRUNE_EPILOG)
@_namespace_option
@_kubeconfig_option
@_context_option
@click.option("--dry-run", is_flag=True, help="Delete nothing; show what would be deleted.")
@click.option(
    "--older-than",
    type=_parse_duration,
    default="10m",
    metavar="DURATION",
    help="Keep ConfigMaps that are younger: 90s, 10m, 2h, 1d. Default: 10m.",
)
@click.option(
    "--release-namespace",
    default="",
    metavar="NAME",
    help="Namespace of the chart's release. Default: that of the webhook's Service; in a pod "
    "without permission to read it, the pod's namespace.",
)
@click.option(
    "--keep", multiple=True, metavar="HASH", help="Also keep this version. May be repeated."
)
def prune(
    *,
    namespace: str,
    kubeconfig: str | None,
    context: str | None,
    dry_run: bool,
    older_than: dt.timedelta,
    release_namespace: str,
    keep: tuple[str, ...],
) -> None:
    """Delete runtime ConfigMaps that no pod uses.

    In each namespace with an actor, the injector creates one ConfigMap asya-runtime-HASH per
    version of the runtime. Those that no pod refers to are deleted, except if a chart or a running
    injector has their version, if they belong to a manifest, or if they were created recently.
    Requires permission to list and delete ConfigMaps and to list pods.
    """
    from asya_injector.diagnostics.prune import PruneError
    from asya_injector.diagnostics.prune import prune as run_prune
    from asya_injector.kube_client import ApiException, describe_error

    for version in keep:
        if not re.fullmatch("[0-9a-f]{10}", version):
            raise CommandError(f"--keep: {version!r} is not a hash of 10 hexadecimal digits")
    suffix = " (dry run)" if dry_run else ""
    deleted = kept = failed = 0
    with _connect(kubeconfig, context) as cluster:
        try:
            for decision in run_prune(
                cluster,
                older_than=older_than,
                dry_run=dry_run,
                release=release_namespace or _find_release(cluster),
                namespace=namespace,
                keep=keep,
            ):
                name, reason = decision.name, decision.reason
                if decision.failed:
                    failed += 1
                    click.secho(f"{name}: not deleted: {reason}", fg="red", err=True)
                elif decision.delete:
                    deleted += 1
                    click.echo(f"{name}: deleted{suffix}")
                else:
                    kept += 1
                    click.echo(f"{name}: kept, {reason}")
        except PruneError as error:
            raise CommandError(str(error), FAILED) from None
        except ApiException as error:
            raise CommandError(describe_error(error), FAILED) from None
    click.echo(f"{deleted} deleted{suffix}, {kept} kept")
    if failed:
        raise SystemExit(FAILED)


def _find_release(cluster: "Cluster") -> str | None:
    """The namespace of the chart's release; empty if there is none, None if it is unknown."""
    from asya_injector.diagnostics.injector import find_service
    from asya_injector.kube_client import ApiException

    try:
        return find_service(
            cluster.list("admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations")
        )[0]
    except ApiException:
        pass
    try:
        return _OWN_NAMESPACE.read_text("utf-8").strip()
    except OSError:
        return None


@contextmanager
def _connect(kubeconfig: str | None, context: str | None) -> Iterator["Cluster"]:
    from asya_injector import kube_client

    try:
        api = kube_client.connect(kubeconfig, context)
    except (kube_client.ConfigException, OSError) as error:
        line = " ".join(str(error).split()).rstrip(".")
        raise CommandError(f"cluster unreachable: {line}; see --kubeconfig") from None
    try:
        yield kube_client.Cluster(api)
    except kube_client.HTTPError as error:
        line = kube_client.describe_error(error)
        raise CommandError(f"cluster unreachable: {line}") from None


def _print_row(result: CheckResult) -> None:
    state = click.style(f"{result.state:8}", fg=_COLORS[result.state])
    click.echo(f"{result.check:12} {state} {_escape(result.found)}")
    if result.fix:
        click.echo(f"{'':21} {_escape(result.fix)}")


def _escape(text: str) -> str:
    """Replace what could control a terminal; the text may come from a server."""
    return "".join(each if each.isprintable() else " " for each in text)
