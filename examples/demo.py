"""`make demo`: one annotation turns a function of a web application into an actor.

Needs a cluster, KUBECONFIG, kubectl and helm on PATH, and INJECTOR_IMAGE (name:tag, loaded into the
cluster). Exits with 0 only if every reply is as expected. It can be run again at any time;
`make demo-clean` removes what it created.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from examples.pod_diff import diff_pods, select_written, to_yaml

HERE = Path(__file__).resolve().parent
REPO = HERE.parent
RELEASE, SYSTEM = "asya-runtime", "asya-system"
NAMESPACE, NAME, SIDECAR, PORT = "demo", "whichlang", "asya-sidecar", 8080
HANDLER = "whichlang.service.predict"
# Cleaning up removes a namespace or a release only if it has this label.
LABEL = "installed-by=make-demo"
COLOURS = {"+": "\033[32m", "-": "\033[31m"}


class DemoError(Exception):
    """A step failed; the text is one line."""


class MissingError(Exception):
    """A requirement is missing; the text says how to get it."""


# --- Commands ---------------------------------------------------------------------------------


def headline(text: str) -> None:
    """Print the title of a step."""
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def run(*command: str, stdin: str | None = None, show: str = "", rejected: bool = False) -> str:
    """Run a command; returns its stdout, or the stderr of a command that has to be rejected.

    show: the command as a user would type it; it is printed, and so is the command's stderr.
    """
    if show:
        print(f"$ {show}", flush=True)
    # The timeout is far longer than any command takes: it turns a hang into an error.
    result = subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=300, check=False, cwd=REPO
    )
    print(result.stderr if show else "", end="", file=sys.stderr, flush=True)
    if rejected != bool(result.returncode):
        why = (
            "was accepted, but should have been rejected"
            if rejected
            else last_line(result.stderr or result.stdout)
        )
        raise DemoError(f"{shlex.join(command[:4])} ...: {why}")
    return result.stderr if rejected else result.stdout


def last_line(text: str) -> str:
    """The last line that is not empty."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")


def kubectl(*arguments: str, rejected: bool = False) -> str:
    """Run kubectl and print the command and its output; returns what `run` returns."""
    command = ("kubectl", *arguments)
    output = run(*command, show=shlex.join(command), rejected=rejected)
    print("" if rejected else output, end="", flush=True)
    return output


def get_json(*arguments: str) -> Any:
    """kubectl's output as JSON, without printing it."""
    return json.loads(run("kubectl", *arguments, "-o", "json"))


def image(name: str, context: str) -> str:
    """Build an image and load it into the cluster; returns its full name."""
    show = f"e2e/cluster/image.sh {name} {context}"
    return last_line(run(*show.split(), show=show))


def only_pod(selector: str) -> dict[str, Any]:
    """The one pod of the application that is not terminating."""
    pods = get_json("get", "pods", "-n", NAMESPACE, "-l", selector)["items"]
    alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
    if len(alive) != 1:
        raise DemoError(f"expected one pod with {selector}, found {len(alive)}")
    pod: dict[str, Any] = alive[0]
    return pod


# --- The steps --------------------------------------------------------------------------------


def install(options: str = "") -> None:
    """Install the chart, or upgrade an installed release."""
    repository, _, tag = os.environ["INJECTOR_IMAGE"].rpartition(":")
    if is_installed("--pending"):
        # Helm was interrupted, and would reject every upgrade.
        run("helm", "uninstall", RELEASE, "-n", SYSTEM, "--wait")
    existing = run("helm", "list", "-n", SYSTEM, "-q", "-f", f"^{RELEASE}$").strip()
    command = (
        f"helm upgrade --install {RELEASE} ./chart -n {SYSTEM} --create-namespace --wait "
        f"--set injector.image.repository={repository} --set injector.image.tag={tag} "
        + ("--reset-then-reuse-values" if existing else f"--labels {LABEL}")
        + options
    )
    run(*command.split(), show=command)


def is_installed(*options: str) -> bool:
    """Whether a demo has installed the release."""
    return bool(run(*f"helm list -n {SYSTEM} -q -f ^{RELEASE}$ -l {LABEL}".split(), *options))


def deploy() -> dict[str, Any]:
    """Deploy the unmodified application; returns its pod."""
    headline("Deploy an unmodified web application")
    web, sidecar = image(NAME, "examples/app"), image("asya-demo-sidecar", "examples/sidecar")
    manifest = yaml.safe_load((HERE / "deployment.yaml").read_text())
    for container in manifest["spec"]["template"]["spec"]["containers"]:
        container["image"] = sidecar if container["name"] == SIDECAR else web
    if not run("kubectl", "get", "namespace", NAMESPACE, "--ignore-not-found"):
        run("kubectl", "create", "namespace", NAMESPACE)
        run("kubectl", "label", "namespace", NAMESPACE, LABEL)
    # Delete the Deployment of an earlier demo, with its pods.
    options = "--ignore-not-found --cascade=foreground --wait --timeout=240s"
    run("kubectl", "delete", "deployment", NAME, "-n", NAMESPACE, *options.split())
    print(f"$ kubectl apply -n {NAMESPACE} -f examples/deployment.yaml   # with these images")
    print(run("kubectl", "apply", "-n", NAMESPACE, "-f", "-", stdin=json.dumps(manifest)), end="")
    wait_for_rollout()
    pod = only_pod(f"app={NAME}")
    print(to_yaml({"spec": select_written(pod)["spec"]}), end="")
    return pod


def wait_for_rollout() -> None:
    """Wait until the rollout is complete."""
    kubectl("rollout", "status", "-n", NAMESPACE, f"deployment/{NAME}", "--timeout=240s")


def annotate(before: dict[str, Any]) -> str:
    """Add the annotation and print the changes; returns the name of the new pod."""
    headline("Add one annotation: the function becomes an actor")
    kubectl("annotate", "-n", NAMESPACE, f"deployment/{NAME}", f"asya.sh/handler={HANDLER}")
    wait_for_rollout()
    headline("What changed in the pod")
    pod = only_pod(f"app={NAME},asya.sh/runtime-hash")
    for line in diff_pods(before, pod):
        colour = COLOURS.get(line[0]) if sys.stdout.isatty() else None
        print(f"{colour}{line}\033[0m" if colour else line)
    name: str = pod["metadata"]["name"]
    return name


def check_page(pod: str) -> None:
    """Request the application's page over HTTP, through the API server."""
    headline("The web application still answers over HTTP")
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:{PORT}/proxy/"
    page = kubectl("get", "--raw", path + "?text=Goedemorgen,+wat+een+mooie+dag!")
    if "<p>Dutch</p>" not in page:
        raise DemoError("the page does not contain <p>Dutch</p>")


def check_misspelt_annotation() -> None:
    """Try a misspelt annotation, which is rejected."""
    headline("A misspelt annotation is rejected, and changes nothing")
    error = kubectl(
        *("annotate", "-n", NAMESPACE, f"deployment/{NAME}", f"asya.sh/handlr={HANDLER}"),
        rejected=True,
    )
    if 'did you mean "asya.sh/handler"' not in error:
        raise DemoError(f"the error has no suggestion: {last_line(error)}")


def send_messages(pod: str) -> None:
    """Send messages from the sidecar, and compare the replies."""
    headline("Send messages: from the sidecar, over the actor's socket")
    messages = (HERE / "messages.jsonl").read_text()
    expected = [json.loads(line) for line in (HERE / "replies.jsonl").read_text().splitlines()]
    command = f"kubectl exec -i -n {NAMESPACE} {pod} -c {SIDECAR} -- python3 /sidecar.py"
    output = run(*command.split(), stdin=messages, show=f"{command} < examples/messages.jsonl")
    lines = output.splitlines()
    for message, reply in zip(messages.splitlines(), lines, strict=False):
        print(f"  -> {message}\n  <- {reply}")
    wrong = list(find_differences([json.loads(line) for line in lines], expected))
    if wrong:
        raise DemoError("; ".join(wrong))


def find_differences(replies: list[Any], expected: list[Any]) -> Iterator[str]:
    """The differences between replies and expected replies, in words."""
    if len(replies) != len(expected):
        yield f"{len(replies)} replies to {len(expected)} messages"
    for number, (reply, right) in enumerate(zip(replies, expected, strict=False), 1):
        if reply != right:
            yield f"reply {number} is {json.dumps(reply)}, expected {json.dumps(right)}"


def check() -> None:
    """Check the requirements of the demo."""
    if not os.environ.get("INJECTOR_IMAGE"):
        raise MissingError("INJECTOR_IMAGE is not set: run `make demo`, which builds the image")
    if not is_cluster_running():
        raise MissingError("no cluster is running: create one with `make cluster`")


def demo() -> None:
    """Run all steps."""
    started = time.monotonic()
    print("To run these commands yourself, in the root of the repository:")
    print(f'  eval "$(make -s env CLUSTER={os.environ.get("CLUSTER", "asya")})"')
    headline("Install asya-runtime")
    install()
    pod = annotate(deploy())
    check_page(pod)
    check_misspelt_annotation()
    send_messages(pod)
    print("\nTo clean up: `make demo-clean` removes the demo, `make cluster-down` the cluster.")
    print(f"demo: all replies are as expected ({time.monotonic() - started:.0f} s)")


def is_cluster_running() -> bool:
    """Whether the API server answers."""
    if not shutil.which("kubectl"):
        return False
    command = ["kubectl", "get", "--raw", "/readyz", "--request-timeout=10s"]
    return not subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


def clean() -> None:
    """Remove the namespace and the release, each only if a demo has created it."""
    if not is_cluster_running():
        print("demo-clean: no cluster is running, so there is nothing to remove")
        return
    namespaces = run("kubectl", "get", "namespace", "-l", LABEL, "-o", "name").split()
    if namespaces:
        print(run("kubectl", "delete", *namespaces, "--wait"), end="")
    if is_installed():
        print(run("helm", "uninstall", RELEASE, "-n", SYSTEM, "--wait"), end="")
        print(run("kubectl", "delete", "namespace", SYSTEM, "--wait"), end="")
    elif run("helm", "list", "-n", SYSTEM, "-q", "-f", f"^{RELEASE}$"):
        print(f"release {RELEASE} stays: it was installed before the demo")
    elif not namespaces:
        print("demo-clean: there is nothing to remove")


def print_diagnostics(namespace: str) -> None:
    """Print the state of a demo after a failure."""
    where = f"-n {namespace}"
    for command in (
        f"kubectl get pods {where} -o wide",
        f"kubectl get events {where} --sort-by=.lastTimestamp",
        f"kubectl logs {where} -l app --all-containers --prefix --tail=20",
        f"kubectl get pods -n {SYSTEM} -o wide",
        f"kubectl logs -n {SYSTEM} -l app.kubernetes.io/instance={RELEASE} --prefix --tail=20",
    ):
        print(f"\n$ {command}", file=sys.stderr, flush=True)
        subprocess.run(command.split(), stdout=sys.stderr, timeout=60, check=False)


def run_steps(
    check: Callable[[], None], steps: Callable[[], None], *, namespace: str = NAMESPACE
) -> int:
    """Run a demo; returns the exit status."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        check()
        steps()
    except MissingError as missing:
        print(missing, file=sys.stderr)
        return 2
    except (DemoError, subprocess.TimeoutExpired) as failure:
        print(f"\nfailed: {failure}", file=sys.stderr, flush=True)
        print_diagnostics(namespace)
        print(f"\nfailed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; you can run it again at any time", file=sys.stderr)
        return 130
    return 0


def main() -> int:
    """Run the demo, or remove both demos with --clean; returns the exit status."""
    if sys.argv[1:] not in ([], ["--clean"]):
        print("usage: demo.py [--clean]", file=sys.stderr)
        return 2
    if sys.argv[1:]:
        return run_steps(lambda: None, clean)
    return run_steps(check, demo)


if __name__ == "__main__":
    sys.exit(main())
