"""The program `asya-injector`: its commands, their options, and what they print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from asya_injector import __version__
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.cli import cluster
from asya_injector.cli.help import COLOUR, REFUSED, CommandError, ManualGroup, answering
from asya_injector.cli.help import run as run_program
from asya_injector.errors import InjectionError
from asya_injector.manifests import chart_values, transform
from asya_injector.manifests import explain as explanations
from asya_injector.manifests.documents import (
    Document,
    ManifestError,
    find_files,
    join_texts,
    read_documents,
)
from asya_injector.manifests.transform import RejectedError, Result
from asya_injector.runtime_files import RuntimeFiles

_DONE = ("0", "done, or there was nothing to do")
_WRONG = ("2", "wrong usage, or an input that cannot be read; nothing was written")


@click.group(
    cls=ManualGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    statuses=[("0", "done"), ("1", "something was refused or is wrong"), _WRONG],
    environment=[COLOUR],
    examples=[
        ("asya-injector inject -f deploy/ | kubectl apply -f -", "make actors without a webhook"),
        ("asya-injector explain -f model.yaml", "see what would be done"),
        ("asya-injector check", "see whether a cluster is in order"),
    ],
)
@click.version_option(__version__, prog_name="asya-injector")
def program() -> None:
    """Turn annotated pods into actors.

    A pod, or a workload, asks for it by the annotation `asya.sh/handler: module.path.function`.
    `asya-injector COMMAND --help` has the page of a command.
    """


@program.command(
    statuses=[("0", "ended by a signal"), ("78", "the configuration is wrong")],
    environment=[("INJECTOR_...", "settings; the chart writes them")],
)
def run() -> None:
    """Serve the webhooks in a cluster.

    All settings come from the environment, which the chart writes.
    """
    from asya_injector.cli.run import run as serve  # noqa: PLC0415  (kopf takes a second)

    serve()


def _reading(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of commands that read manifests."""
    for option in (
        click.option(
            "-n",
            "--namespace",
            default="",
            metavar="NAME",
            help="Namespace of objects that name none.",
        ),
        click.option(
            "-f",
            "--filename",
            "filenames",
            multiple=True,
            metavar="FILE",
            help="A file, a directory (with all below it), or - for standard input, which is also "
            "read where this option is missing. May be repeated.",
        ),
    ):
        command = option(command)
    return command


def _deciding(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what holds for all actors, one for each value of the chart."""
    for entry in reversed(chart_values.DEFAULTS):
        text = entry.description[0].upper() + entry.description[1:]
        text = f"{text}. Default: {entry.default}."
        option = f"--{entry.name}"
        command = click.option(option, entry.name.replace("-", "_"), metavar="VALUE", help=text)(
            command
        )
    return click.option(
        "--values",
        "values_file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Values of the chart; its runtime.defaults hold here too, under the options below.",
    )(command)


@program.command(
    statuses=[_DONE, ("1", "at least one object was refused; nothing was written"), _WRONG],
    environment=[COLOUR],
    examples=[
        (
            "asya-injector inject -f deploy/ | kubectl apply -f -",
            "make actors of all in a directory",
        ),
        ("kustomize build . | asya-injector inject -n models", "at the end of a pipeline"),
        ("asya-injector inject -f model.yaml --values values.yaml", "as a cluster's chart would"),
    ],
)
@_reading
@click.option("--no-configmap", is_flag=True, help="Leave the runtime's ConfigMaps to others.")
@_deciding
def inject(
    filenames: Sequence[str],
    namespace: str,
    no_configmap: bool,
    values_file: Path | None,
    **defaults: str | None,
) -> None:
    """Make actors of the pods and workloads in manifests.

    Reads YAML and JSON, with several documents and lists, and writes all of it to standard output:
    annotated pods and workloads changed as the webhook would change their pods, everything else as
    it was, comments and order included; in front of the first actor of each namespace the ConfigMap
    that it mounts. Where an object is refused, all refusals are told and nothing is written. What
    was injected before is brought up to date.
    """
    payload = _payload()
    policy = _policy(payload, values_file, defaults)
    documents = _documents(filenames)
    carried = None if no_configmap else payload
    _give(lambda: transform.inject_all(documents, policy, carried, namespace=namespace))


@program.command(
    statuses=[_DONE, ("1", "at least one object was refused; nothing was written"), _WRONG],
    environment=[COLOUR],
    examples=[("asya-injector uninject -f rendered.yaml", "get back what inject was given")],
)
@_reading
def uninject(filenames: Sequence[str], namespace: str) -> None:
    """Take out of manifests what inject has put in.

    The opposite of inject: pods and workloads as they were, without the ConfigMaps that inject
    added. Annotations of the user's stay.
    """
    documents = _documents(filenames)
    _give(lambda: transform.uninject_all(documents, namespace=namespace))


@program.command(
    statuses=[
        ("0", "all objects would become actors or be left alone"),
        ("1", "at least one object would be refused"),
        _WRONG,
    ],
    environment=[COLOUR],
    examples=[
        ("asya-injector explain -f model.yaml", "what would be done, and why"),
        ("asya-injector explain -f deploy/ -o json | jq '.objects[].result'", "for programs"),
    ],
)
@_reading
@answering("text", "json")
@click.option("--schema", is_flag=True, help="Print the JSON schema of -o json, and end.")
@_deciding
def explain(
    filenames: Sequence[str],
    namespace: str,
    output: str,
    schema: bool,
    values_file: Path | None,
    **defaults: str | None,
) -> None:
    """Tell what would be done to each object and why.

    For each object of the manifests: which container becomes the actor, how the runtime is started
    and why so, what is mounted, which variables and settings it gets and who decided them; or why
    it is left alone; or the refusal. Changes nothing.
    """
    if schema:
        click.echo(json.dumps(explanations.build_schema(), indent=2))
        return
    policy = _policy(_payload(), values_file, defaults)
    documents = _documents(filenames)
    disabled = transform.disabled_namespaces(documents)
    found = [
        (each, explanations.explain(each, transform.outcome(each, policy, disabled)))
        for each in transform.iter_objects(documents, namespace)
    ]
    if output == "json":
        told = explanations.build_report([explanation for _, explanation in found], policy)
        click.echo(json.dumps(told, indent=2))
    else:
        colours = {"injected": "green", "rejected": "red"}
        for each, explanation in found:
            first, *rest = explanations.render_lines(each, explanation)
            colour = colours.get(explanation["result"])
            click.echo(click.style(first, fg=colour) if colour else first)
            for line in rest:
                click.echo(line)
    if any(explanation["result"] == "rejected" for _, explanation in found):
        raise SystemExit(REFUSED)


program.add_command(cluster.check)
program.add_command(cluster.prune)


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Run the program; ends the process."""
    run_program(program, words)


def _payload() -> RuntimeFiles:
    try:
        return RuntimeFiles.packaged()
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"this installation lacks the runtime's files: {error}") from None


def _policy(
    payload: RuntimeFiles, values_file: Path | None, options: dict[str, str | None]
) -> ClusterDefaults:
    said = {name.replace("_", "-"): text for name, text in options.items()}
    try:
        chart = chart_values.read_values(values_file) if values_file else {}
        return ClusterDefaults(payload.hash, chart_values.merge_values(chart, said))
    except (ManifestError, OSError, UnicodeDecodeError) as error:
        raise CommandError(str(error)) from None
    except InjectionError as refusal:
        # It names an annotation; here the option or the value of that name is meant.
        raise CommandError(f"default of {refusal}") from None


def _documents(filenames: Sequence[str]) -> list[Document]:
    documents: list[Document] = []
    try:
        for name in filenames or ["-"]:
            if name == "-":
                documents += read_documents("stdin", _stdin())
                continue
            for path in find_files([Path(name)]):
                documents += read_documents(str(path), path.read_bytes().decode())
    except OSError as error:
        raise CommandError(f"{error.filename}: {os.strerror(error.errno or 0)}") from None
    except UnicodeDecodeError as error:
        raise CommandError(f"{name}: not a text in UTF-8: {error.reason}") from None
    except ManifestError as error:
        raise CommandError(str(error)) from None
    return documents


def _stdin() -> str:
    if sys.stdin.isatty():
        raise CommandError("nothing to read: say -f FILE, or give manifests on standard input")
    return sys.stdin.buffer.read().decode()


def _give(make: Callable[[], Result]) -> None:
    """Print what was made, or all that was refused."""
    try:
        result = make()
    except RejectedError as refused:
        for line in refused.lines:
            click.secho(f"asya-injector: {line}", fg="red", err=True)
        raise SystemExit(REFUSED) from None
    for line in result.warnings:
        click.secho(f"asya-injector: warning: {line}", fg="yellow", err=True)
    sys.stdout.buffer.write(join_texts(result.texts).encode())
    sys.stdout.buffer.flush()
