"""The commands that read manifests: `inject`, `uninject` and `explain`."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.cli.common import EXIT_STATUS, FAILED, CommandError, output_option
from asya_injector.documents.document import (
    Document,
    decode,
    encode,
    find_files,
    join_documents,
    read_documents,
)
from asya_injector.errors import InjectionError
from asya_injector.manifests import chart_values, transform
from asya_injector.manifests import explain as explanations
from asya_injector.manifests.delivery import DeliveryError, choose_delivery
from asya_injector.manifests.objects import iter_objects
from asya_injector.runtime_files import RuntimeFiles
from asya_injector.runtime_image import CONFIG_MAP, DELIVERIES, RUNTIME_FOLDER

# What keeps an object that is no longer in the manifests, by tool.
_KEEP = {
    "helm": {"helm.sh/resource-policy": "keep"},
    "argocd": {"argocd.argoproj.io/sync-options": "Prune=false,Delete=false"},
    "flux": {"kustomize.toolkit.fluxcd.io/prune": "disabled"},
}
_COLORS = {"injected": "green", "rejected": "red"}

_INJECT_EPILOG = f"""
\b
Examples:
  # inject everything in a directory
  asya-injector inject -f deploy/ | kubectl apply -f -
  # at the end of a pipeline
  kustomize build . | asya-injector inject -n models
  # with the values of a cluster's chart
  asya-injector inject -f model.yaml --values values.yaml
  # without ConfigMaps: pods mount the runtime from an image
  asya-injector inject -f model.yaml --delivery image --runtime-image example.com/asya-injector:1
{EXIT_STATUS}"""
_UNINJECT_EPILOG = f"""
\b
Examples:
  # restore what inject was given
  asya-injector uninject -f injected.yaml
{EXIT_STATUS}"""
_EXPLAIN_EPILOG = f"""
\b
Examples:
  # show what would change, and why
  asya-injector explain -f model.yaml
  # with output for programs
  asya-injector explain -f deploy/ -o json | jq '.objects[].result'
{EXIT_STATUS}"""

_namespace_option = click.option(
    "-n", "--namespace", default="", metavar="NAME", help="Namespace of objects that name none."
)
_filename_option = click.option(
    "-f",
    "--filename",
    "filenames",
    multiple=True,
    metavar="FILE",
    help="A file, a directory with everything below it, or - for standard input. May be repeated. "
    "Default: standard input.",
)


def _default_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for cluster defaults: a file of chart values, and one option per value."""
    for entry in reversed(chart_values.DEFAULTS):
        text = f"{entry.description[0].upper()}{entry.description[1:]}. Default: {entry.default}."
        name = entry.name.replace("-", "_")
        command = click.option(f"--{entry.name}", name, metavar="VALUE", help=text)(command)
    return click.option(
        "--values",
        "values_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Chart values, of which runtime.defaults, runtime.delivery and sidecar are used. The "
        "options below take precedence.",
    )(_delivery_options(command))


def _delivery_options(command: Callable[..., Any]) -> Callable[..., Any]:
    command = click.option(
        "--runtime-image",
        metavar="REFERENCE",
        help="With --delivery image: the image with the runtime files in its folder "
        f"/{RUNTIME_FOLDER}. Default: in the values, runtime.image or injector.image.",
    )(command)
    return click.option(
        "--delivery",
        type=click.Choice(DELIVERIES),
        help="What pods mount: a ConfigMap of their namespace, or an image, which requires "
        f"Kubernetes 1.36 and no ConfigMap. Default: {CONFIG_MAP}.",
    )(command)


@click.command(epilog=_INJECT_EPILOG)
@_filename_option
@_namespace_option
@click.option("--no-configmap", is_flag=True, help="Do not emit the runtime ConfigMaps.")
@click.option(
    "--keep-with",
    type=click.Choice(list(_KEEP)),
    help="Annotate the runtime ConfigMaps so that this tool does not delete them.",
)
@click.option(
    "--require",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Fail if the output has fewer than N actors.",
)
@_default_options
def inject(
    *,
    filenames: Sequence[str],
    namespace: str,
    no_configmap: bool,
    keep_with: str | None,
    require: int,
    values_file: Path | None,
    delivery: str | None,
    runtime_image: str | None,
    **defaults: str | None,
) -> None:
    """Inject the runtime into pods and workloads.

    Reads YAML and JSON, also with several documents and with lists, and writes all of it to
    standard output. Annotated pods, workloads and pod templates in other kinds are changed as the
    webhook would change their pods. The runtime ConfigMap of each namespace is added before its
    first actor, unless pods mount an image. Everything else is written as it was, including
    comments and order. If an object is rejected, all errors are reported and no output is written.
    Objects that were injected before are updated.
    """
    runtime = _load_runtime()
    settings = _read_defaults(runtime, values_file, defaults, delivery, runtime_image)
    documents = _read_input(filenames)
    added = None if no_configmap else runtime
    kept = _KEEP[keep_with] if keep_with else {}
    output = transform.inject_all(documents, settings, added, namespace=namespace, annotations=kept)
    _print_warnings(output)
    click.echo(f"{_name()}: {output.summarize()}", err=True)
    if output.actors < require:
        raise CommandError(f"--require {require}: the output has {output.actors} actors", FAILED)
    _print_output(documents, output)


@click.command(epilog=_UNINJECT_EPILOG)
@_filename_option
@_namespace_option
def uninject(filenames: Sequence[str], namespace: str) -> None:
    """Remove from manifests what inject has added.

    Restores pods and workloads, and removes the runtime ConfigMaps that inject has added. The
    annotations that users set are kept.
    """
    documents = _read_input(filenames)
    output = transform.uninject_all(documents, namespace=namespace)
    _print_warnings(output)
    _print_output(documents, output)


@click.command(epilog=_EXPLAIN_EPILOG)
@_filename_option
@_namespace_option
@output_option("text", "json")
@click.option("--schema", is_flag=True, help="Print the JSON schema of -o json, and exit.")
@_default_options
def explain(
    *,
    filenames: Sequence[str],
    namespace: str,
    output: str,
    schema: bool,
    values_file: Path | None,
    delivery: str | None,
    runtime_image: str | None,
    **defaults: str | None,
) -> None:
    """Show what would change in each object, and why.

    Shows which container becomes the actor, how the runtime is started, what is mounted, and which
    variables and settings are set, each with its source; or why the object is left alone or
    rejected. Nothing is changed.
    """
    if schema:
        click.echo(json.dumps(explanations.build_schema(), indent=2))
        return
    settings = _read_defaults(_load_runtime(), values_file, defaults, delivery, runtime_image)
    documents = _read_input(filenames)
    disabled = transform.list_disabled_namespaces(documents)
    outcomes = [
        outcome
        for each in iter_objects(documents, namespace, with_unread=True)
        for outcome in transform.explain_changes(each, settings, disabled)
    ]
    explained = [explanations.explain(*outcome) for outcome in outcomes]
    if output == "json":
        click.echo(json.dumps(explanations.build_report(explained, settings), indent=2))
    else:
        for (each, _), explanation in zip(outcomes, explained, strict=True):
            first, *rest = explanations.render_lines(each, explanation)
            click.secho(first, fg=_COLORS.get(explanation["result"]))
            click.echo("".join(f"{line}\n" for line in rest), nl=False)
    if any(explanation["result"] == "rejected" for explanation in explained):
        raise SystemExit(FAILED)


def _load_runtime() -> RuntimeFiles:
    try:
        return RuntimeFiles.packaged()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(
            f"the runtime files are missing from this installation: {error}"
        ) from None


def _read_defaults(
    runtime: RuntimeFiles,
    values_file: Path | None,
    options: dict[str, str | None],
    delivery: str | None,
    runtime_image: str | None,
) -> ClusterDefaults:
    given = {name.replace("_", "-"): text for name, text in options.items() if text is not None}
    try:
        chart = chart_values.load_values(values_file) if values_file else {}
        chosen = choose_delivery(chart, values_file, delivery=delivery, reference=runtime_image)
        values, sidecar = chart_values.read_values(chart, values_file)
        runtime_hash = chosen.choose_hash(runtime.hash)
        return ClusterDefaults(runtime_hash, values | given, sidecar=sidecar, image=chosen.image)
    except (OSError, UnicodeDecodeError, DeliveryError) as error:
        raise CommandError(str(error)) from None
    except InjectionError as error:
        # It names an annotation; the option or the value of the same name is wrong.
        raise CommandError(f"default of {error}") from None


def _read_input(filenames: Sequence[str]) -> list[Document]:
    documents: list[Document] = []
    try:
        for name in filenames or ["-"]:
            if name == "-":
                documents += read_documents("stdin", decode(_read_stdin()))
                continue
            for path in find_files(Path(name)):
                documents += read_documents(str(path), decode(path.read_bytes()))
    except OSError as error:
        raise CommandError(f"{error.filename}: {os.strerror(error.errno or 0)}") from None
    return documents


def _read_stdin() -> bytes:
    if sys.stdin.isatty():
        raise CommandError("no input: use -f FILE, or pipe manifests to standard input")
    return sys.stdin.buffer.read()


def _name() -> str:
    """The name by which this program was called."""
    return str(click.get_current_context().find_root().info_name)


def _print_warnings(output: transform.Output) -> None:
    for line in output.warnings:
        click.secho(f"{_name()}: warning: {line}", fg="yellow", err=True)


def _print_output(documents: Sequence[Document], output: transform.Output) -> None:
    # A byte order mark can only be at the start, where a ConfigMap may have been added.
    bom = "\ufeff" if documents and documents[0].has_bom else ""
    sys.stdout.buffer.write(encode(bom + join_documents(output.documents)))
    sys.stdout.buffer.flush()
