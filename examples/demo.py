"""`make demo`: a web application's function becomes an actor by one annotation, step by step.

Expects a cluster, and in the environment KUBECONFIG, kubectl and helm on PATH, and INJECTOR_IMAGE
(name:tag, already in the cluster). Ends with 0 only if every reply is the expected one. It may be
run again at any time; `demo.py --clean` (`make demo-clean`) takes away what it made.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from examples.pod_diff import as_yaml, changes, essence

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
RELEASE, SYSTEM = "asya-runtime", "asya-system"
NAMESPACE, NAME, SIDECAR, PORT = "demo", "whichlang", "asya-sidecar", 8080
HANDLER = "whichlang.service.predict"
# Cleaning up removes namespace and release only with this label: what was there before stays.
MARK = "installed-by=make-demo"
COLOURS = {"+": "\033[32m", "-": "\033[31m"}


class DemoError(Exception):
    """A step that did not do what it should; its text is one line."""


class Missing(Exception):  # noqa: N818
    """Something the demo expects is not there; the text says how to get it."""


# --- Doing and showing ------------------------------------------------------------------------


def headline(text: str) -> None:
    """Begin a step."""
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def run(*command: str, stdin: str | None = None, show: str = "", refused: bool = False) -> str:
    """Run a command; returns its stdout, or the stderr of one that is meant to be refused.

    With `show`, the text of the command as somebody would type it, that and its stderr are seen.
    """
    if show:
        print(f"$ {show}", flush=True)
    # Far beyond anything seen; it only turns a hang into a message.
    result = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=240, check=False, cwd=REPO
    )
    print(result.stderr if show else "", end="", file=sys.stderr, flush=True)
    if refused != bool(result.returncode):
        why = "should have been refused" if refused else last_line(result.stderr or result.stdout)
        raise DemoError(f"{shlex.join(command[:4])} ...: {why}")
    return result.stderr if refused else result.stdout


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")


def kubectl(*arguments: str, refused: bool = False) -> str:
    """Run kubectl for all to see; returns what `run` does."""
    command = ("kubectl", *arguments)
    output = run(*command, show=shlex.join(command), refused=refused)
    print("" if refused else output, end="", flush=True)
    return output


def look(*arguments: str) -> Any:
    """What kubectl gives as JSON, without showing it."""
    return json.loads(run("kubectl", *arguments, "-o", "json"))


def image(name: str, context: str) -> str:
    """Build an image and load it into the cluster; returns its full name."""
    show = f"e2e/cluster/image.sh {name} {context}"
    return last_line(run(*show.split(), show=show))


def only_pod(selector: str) -> dict[str, Any]:
    """The one pod of the application that is not on its way out."""
    pods = look("get", "pods", "-n", NAMESPACE, "-l", selector)["items"]
    alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    if len(alive) != 1:
        raise DemoError(f"expected one pod with {selector}, found {len(alive)}")
    pod: dict[str, Any] = alive[0]
    return pod


# --- The steps --------------------------------------------------------------------------------


def install() -> None:
    """Install the chart, or bring an installed one up to date."""
    headline("Install asya-runtime")
    repository, _, tag = os.environ["INJECTOR_IMAGE"].rpartition(":")
    if ours("--pending"):
        # Somebody pressed Ctrl-C in the middle of helm; it would refuse for ever.
        run("helm", "uninstall", RELEASE, "-n", SYSTEM, "--wait")
    there = run("helm", "list", "-n", SYSTEM, "-q", "-f", f"^{RELEASE}$").strip()
    command = (
        f"helm upgrade --install {RELEASE} ./chart -n {SYSTEM} --create-namespace --wait "
        f"--set injector.image.repository={repository} --set injector.image.tag={tag} "
        + ("--reset-then-reuse-values" if there else f"--labels {MARK}")
    )
    run(*command.split(), show=command)


def ours(*options: str) -> bool:
    """Whether there is a release that a demo installed."""
    return bool(run(*f"helm list -n {SYSTEM} -q -f ^{RELEASE}$ -l {MARK}".split(), *options))


def deploy() -> dict[str, Any]:
    """Deploy the application as it was; returns its pod."""
    headline("A web application, as it was: nothing in it knows asya-runtime")
    web, sidecar = image(NAME, "examples/app"), image("asya-demo-sidecar", "examples/sidecar")
    manifest = yaml.safe_load((HERE / "deployment.yaml").read_text())
    for container in manifest["spec"]["template"]["spec"]["containers"]:
        container["image"] = sidecar if container["name"] == SIDECAR else web
    if not run("kubectl", "get", "namespace", NAMESPACE, "--ignore-not-found"):
        run("kubectl", "create", "namespace", NAMESPACE)
        run("kubectl", "label", "namespace", NAMESPACE, MARK)
    # An earlier demo's Deployment goes with its pods, so that this one begins at the beginning.
    gone = "--ignore-not-found --cascade=foreground --wait --timeout=60s"
    run("kubectl", "delete", "deployment", NAME, "-n", NAMESPACE, *gone.split())
    print(f"$ kubectl apply -n {NAMESPACE} -f examples/deployment.yaml   # with the images above")
    print(run("kubectl", "apply", "-n", NAMESPACE, "-f", "-", stdin=json.dumps(manifest)), end="")
    rolled_out()
    pod = only_pod(f"app={NAME}")
    print(as_yaml({"spec": essence(pod)["spec"]}), end="")
    return pod


def rolled_out() -> None:
    """Wait until the Deployment is as wished."""
    kubectl("rollout", "status", "-n", NAMESPACE, f"deployment/{NAME}", "--timeout=90s")


def annotate(before: dict[str, Any]) -> str:
    """Add the one annotation and show what it changed; returns the new pod's name."""
    headline("One annotation: this function becomes an actor")
    kubectl("annotate", "-n", NAMESPACE, f"deployment/{NAME}", f"asya.sh/handler={HANDLER}")
    rolled_out()
    headline("What that changed in the pod")
    pod = only_pod(f"app={NAME},asya.sh/runtime-hash")
    for line in changes(before, pod):
        colour = COLOURS.get(line[0]) if sys.stdout.isatty() else None
        print(f"{colour}{line}\033[0m" if colour else line)
    name: str = pod["metadata"]["name"]
    return name


def still_answers(pod: str) -> None:
    """Ask the application over HTTP, through the API server."""
    headline("The web application still answers over HTTP")
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:{PORT}/proxy/"
    page = kubectl("get", "--raw", path + "?text=Goedemorgen,+wat+een+mooie+dag!")
    if "<p>Dutch</p>" not in page:
        raise DemoError("the web application's page does not say Dutch")


def wrong_annotation() -> None:
    """Try a misspelt annotation; it is refused before anything happens."""
    headline("A mistake is refused at once, and changes nothing")
    says = kubectl(
        *("annotate", "-n", NAMESPACE, f"deployment/{NAME}", f"asya.sh/handlr={HANDLER}"),
        refused=True,
    )
    if 'did you mean "asya.sh/handler"' not in says:
        raise DemoError(f"refused, but without a hint: {last_line(says)}")


def messages(pod: str) -> None:
    """Send the file's messages through the sidecar and compare the replies."""
    headline("Messages in, replies out: the sidecar sends them over the actor's socket")
    sent = (HERE / "messages.jsonl").read_text()
    expected = [json.loads(line) for line in (HERE / "replies.jsonl").read_text().splitlines()]
    command = f"kubectl exec -i -n {NAMESPACE} {pod} -c {SIDECAR} -- python3 /sidecar.py"
    output = run(*command.split(), stdin=sent, show=f"{command} < examples/messages.jsonl")
    lines = output.splitlines()
    for message, reply in zip(sent.splitlines(), lines, strict=False):
        print(f"  -> {message}\n  <- {reply}")
    wrong = list(differences([json.loads(line) for line in lines], expected))
    if wrong:
        raise DemoError("; ".join(wrong))


def differences(replies: list[Any], expected: list[Any]) -> Iterator[str]:
    """What is wrong with the replies, in words; nothing if they are right."""
    if len(replies) != len(expected):
        yield f"{len(replies)} replies to {len(expected)} messages"
    for number, (reply, right) in enumerate(zip(replies, expected, strict=False), 1):
        if reply != right:
            yield f"reply {number} is {json.dumps(reply)}, expected {json.dumps(right)}"


def check() -> None:
    """See that what the demo expects is there."""
    if not os.environ.get("INJECTOR_IMAGE"):
        raise Missing("INJECTOR_IMAGE is not set: `make demo` builds the image and sets it")
    if not cluster_answers():
        raise Missing("no cluster answers: `make cluster` makes one")


def demo() -> None:
    """All of it."""
    started = time.monotonic()
    print("To try the commands yourself, from the top of the repository:")
    print("  export KUBECONFIG=$PWD/.tools/kubeconfig PATH=$PWD/.tools/bin:$PATH")
    install()
    pod = annotate(deploy())
    still_answers(pod)
    wrong_annotation()
    messages(pod)
    print("\nClean up: `make demo-clean` removes the demo, `make cluster-down` the cluster.")
    print(f"demo: every reply is as expected ({time.monotonic() - started:.0f} s)")


def cluster_answers() -> bool:
    """Whether there is a cluster to show something on."""
    if not shutil.which("kubectl"):
        return False
    command = ["kubectl", "get", "--raw", "/readyz", "--request-timeout=10s"]
    return not subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


def clean() -> None:
    """Remove the namespace and the release, each only if a demo has made it."""
    if not cluster_answers():
        print("demo-clean: no cluster answers, so there is nothing to remove")
        return
    made = run("kubectl", "get", "namespace", "-l", MARK, "-o", "name").split()
    if made:
        print(run("kubectl", "delete", *made, "--wait"), end="")
    if ours():
        print(run("helm", "uninstall", RELEASE, "-n", SYSTEM, "--wait"), end="")
        print(run("kubectl", "delete", "namespace", SYSTEM, "--wait"), end="")
    elif run("helm", "list", "-n", SYSTEM, "-q", "-f", f"^{RELEASE}$"):
        print(f"release {RELEASE} stays: it was there before the demo")
    elif not made:
        print("demo-clean: nothing of the demo is there")


def explain() -> None:
    """What somebody needs to see why it failed."""
    of = f"-n {NAMESPACE}"
    for command in (
        f"kubectl get pods {of} -o wide",
        f"kubectl get events {of} --sort-by=.lastTimestamp",
        f"kubectl logs {of} -l app={NAME} --all-containers --prefix --tail=20",
        f"kubectl get pods -n {SYSTEM} -o wide",
        f"kubectl logs -n {SYSTEM} -l app.kubernetes.io/instance={RELEASE} --prefix --tail=20",
    ):
        print(f"\n$ {command}", file=sys.stderr, flush=True)
        subprocess.run(command.split(), stdout=sys.stderr, timeout=60, check=False)


def main() -> int:
    """Run the demo, or with --clean remove it; 0 if all of it was right."""
    if sys.argv[1:] not in ([], ["--clean"]):
        print("usage: demo.py [--clean]", file=sys.stderr)
        return 2
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        if sys.argv[1:]:
            clean()
        else:
            check()
            demo()
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 2
    except (DemoError, subprocess.TimeoutExpired) as failure:
        print(f"\nfailed: {failure}", file=sys.stderr, flush=True)
        explain()
        print(f"\nfailed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; it may be run again at any time", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
