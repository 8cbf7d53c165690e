"""The commands that look at a cluster: `check` and `prune`."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from asya_injector.cli.help import COLOUR, REFUSED, CommandError, Manual, answering
from asya_injector.diagnostics.results import OK, UNKNOWN, WRONG, CheckResult
from asya_injector.runtime_files import RuntimeFiles

if TYPE_CHECKING:
    from asya_injector.kube_client import Cluster

_CLUSTER = ("KUBECONFIG", "files with clusters and credentials, where --kubeconfig names none")
_COLOURS = {OK: "green", WRONG: "red", UNKNOWN: "yellow"}


class _Duration(click.ParamType[dt.timedelta]):
    """A time span such as 90s, 10m, 2h or 1d."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dt.timedelta:
        """Parse it, or fail as click wants it."""
        match = re.fullmatch(r"([0-9]{1,5})([smhd])", str(value))
        if not match:
            self.fail(f"{value!r} is not a time span such as 90s, 10m, 2h or 1d", param, ctx)
        unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[match[2]]
        return dt.timedelta(**{unit: int(match[1])})


def _connecting(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands that look at a cluster."""
    for option in (
        click.option("--context", metavar="NAME", help="Context of the kubeconfig."),
        click.option(
            "--kubeconfig",
            metavar="FILE",
            help="Where clusters and credentials are. Default: in a pod, its own account; else as "
            "kubectl.",
        ),
        click.option(
            "-n",
            "--namespace",
            default="",
            metavar="NAME",
            help="Look at this namespace alone. Default: all.",
        ),
    ):
        command = option(command)
    return command


@click.command(
    cls=Manual,
    statuses=[
        ("0", "all is well"),
        ("1", "something is wrong, or could not be looked at"),
        ("2", "wrong usage, or no way to a cluster"),
    ],
    environment=[_CLUSTER, COLOUR],
    examples=[
        ("asya-injector check", "the whole cluster of the present context"),
        ("asya-injector check -n models -o json", "one namespace, for a program"),
    ],
)
@_connecting
@answering("table", "json")
def check(*, namespace: str, kubeconfig: str | None, context: str | None, output: str) -> None:
    """See whether a cluster is in order, and how to mend what is not.

    Looks at the webhook configuration and its caBundle, the injector's Deployment and endpoints,
    its certificate, the versions of the runtime, an admission tried by a dry run, annotated pods
    without the runtime or with an old one, and workloads whose annotations never reached their
    template. What the caller may not see is said in its row. Changes nothing.
    """
    from asya_injector.diagnostics.check import check as look  # noqa: PLC0415  (kubernetes takes a second)

    payload = RuntimeFiles.packaged()
    rows: list[CheckResult] = []
    with _cluster(kubeconfig, context) as cluster:
        for row in look(cluster, payload, namespace=namespace):
            rows.append(row)
            if output == "table":
                _print(row)
    if output == "json":
        shown = [
            {"look": row.look, "state": row.state, "found": row.found, "fix": row.fix}
            for row in rows
        ]
        click.echo(json.dumps({"runtime": payload.hash, "rows": shown}, indent=2))
    if any(row.state != OK for row in rows):
        raise SystemExit(REFUSED)


@click.command(
    cls=Manual,
    statuses=[
        ("0", "done"),
        ("1", "at least one copy could not be removed, or something could not be looked at"),
        ("2", "wrong usage, or no way to a cluster"),
    ],
    environment=[_CLUSTER, COLOUR],
    examples=[
        ("asya-injector prune --dry-run", "see what would go, and why the rest stays"),
        ("asya-injector prune --older-than 1d", "remove what has been there for a day"),
    ],
)
@_connecting
@click.option("--dry-run", is_flag=True, help="Remove nothing, tell what would be.")
@click.option(
    "--older-than",
    type=_Duration(),
    default="10m",
    metavar="SPAN",
    help="Leave copies that are younger: 90s, 10m, 2h, 1d. Default: 10m.",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="HASH",
    help="Leave the copies of this version too. May be repeated.",
)
def prune(
    *,
    namespace: str,
    kubeconfig: str | None,
    context: str | None,
    dry_run: bool,
    older_than: dt.timedelta,
    keep: tuple[str, ...],
) -> None:
    """Remove copies of the runtime that no pod needs.

    The injector leaves a ConfigMap asya-runtime-HASH in each namespace with an actor, one for each
    version that was used. This removes those that no pod refers to, unless they are of the version
    that a chart in the cluster holds or an injector gives out, came by manifests, or are young.
    Needs the rights to list and delete ConfigMaps and to list pods.
    """
    from asya_injector.diagnostics.prune import prune as remove  # noqa: PLC0415
    from asya_injector.kube_client import ApiError  # noqa: PLC0415  (kubernetes takes a second)

    for version in keep:
        if not re.fullmatch("[0-9a-f]{10}", version):
            raise CommandError(f"--keep: {version!r} is not a hash of 10 hexadecimal digits")
    gone = stays = failed = 0
    with _cluster(kubeconfig, context) as cluster:
        try:
            for verdict in remove(
                cluster, older_than=older_than, dry_run=dry_run, namespace=namespace, keep=keep
            ):
                if verdict.failed:
                    failed += 1
                    click.secho(f"{verdict.name}: not removed: {verdict.why}", fg="red", err=True)
                elif verdict.goes:
                    gone += 1
                    click.echo(f"{verdict.name}: {'would be removed' if dry_run else 'removed'}")
                else:
                    stays += 1
                    click.echo(f"{verdict.name}: stays, {verdict.why}")
        except ApiError as error:
            raise CommandError(str(error), REFUSED) from None
    click.echo(f"{gone} {'would be ' * dry_run}removed, {stays} stay")
    if failed:
        raise SystemExit(REFUSED)


@contextmanager
def _cluster(kubeconfig: str | None, context: str | None) -> Iterator[Cluster]:
    from asya_injector.kube_client import Cluster, ClusterError  # noqa: PLC0415  (as above)

    try:
        yield Cluster.connect(kubeconfig, context)
    except ClusterError as error:
        raise CommandError(str(error)) from None


def _print(row: CheckResult) -> None:
    state = click.style(f"{row.state:8}", fg=_COLOURS[row.state])
    click.echo(f"{row.look:12} {state} {_one_line(row.found)}")
    if row.fix:
        click.echo(f"{'':21} {_one_line(row.fix)}")


def _one_line(text: str) -> str:
    """What a server said, harmless in a terminal."""
    return "".join(each if each.isprintable() else " " for each in text)
