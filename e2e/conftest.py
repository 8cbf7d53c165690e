"""A cluster with the release installed, a namespace for each test, and a look at it on failure.

Tests run side by side, in as many processes as pytest-xdist makes; those marked `alone` have the
cluster to themselves. README.md beside this file says how to write one.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
import shutil
from collections.abc import Iterator

import ledger
import pytest
import trend
from faults import Scene, staged
from harness import MADE_HERE, REPOSITORY, SYSTEM, Cluster, run
from kubernetes import config

LOCK = REPOSITORY / "build" / "e2e.lock"
CHANGED = REPOSITORY / "build" / "e2e.changed"  # there while the release is not the usual one


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: no other test runs meanwhile")
    LOCK.parent.mkdir(exist_ok=True)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Prepare the cluster, before there are workers, which inherit the environment."""
    if hasattr(session.config, "workerinput") or session.config.option.collectonly:
        return
    if not os.environ.get("INJECTOR_IMAGE") or not shutil.which("kubectl"):
        pytest.exit("run these tests by `make e2e`: it makes cluster, tools and images", 2)
    os.environ["MODEL_IMAGES"] = run(
        str(REPOSITORY / "e2e/cluster/model-images.sh"), timeout=900
    ).stdout
    cluster = connected()
    cluster.uninstall()
    cluster.kubectl("delete", "namespaces", "-l", MADE_HERE, "--wait=false")
    cluster.kubectl("delete", "namespace", SYSTEM, "--ignore-not-found", "--timeout=120s")
    cluster.make_namespace(SYSTEM)
    cluster.install()
    CHANGED.unlink(missing_ok=True)


def connected() -> Cluster:
    config.load_kube_config(os.environ["KUBECONFIG"])  # type: ignore[no-untyped-call]
    images = dict(line.split() for line in os.environ["MODEL_IMAGES"].splitlines())
    return Cluster(os.environ["INJECTOR_IMAGE"], images)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may take longest begins first, a group as a whole, so that nobody waits for a straggler.

    Those that run alone come last, and of them those that leave another release or begin without
    one. They are one group, which is one process: what a module of them has made is there once, and
    gone when the next begins.
    """
    units: dict[str, list[pytest.Item]] = {}
    for item in items:
        group = item.get_closest_marker("xdist_group")
        units.setdefault(group.args[0] if group else item.nodeid, []).append(item)

    def order(unit: list[pytest.Item]) -> tuple[bool, bool, bool, float]:
        markers = [item.get_closest_marker("timeout") for item in unit]
        longest = sum(float(marker.args[0]) for marker in markers if marker)
        fixtures = getattr(unit[0], "fixturenames", ())
        return is_alone(unit[0]), "changing" in fixtures, "free" in fixtures, -longest

    ordered = sorted(units.values(), key=order)
    single = [unit for unit in ordered if len(unit) == 1 and not is_alone(unit[0])]
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
    if single and processes:  # each is given two at once: what waits for the longest shall be short
        ordered.remove(single[-1])
        ordered.insert(processes, single[-1])
    items[:] = [item for unit in ordered for item in unit]
    for item in items:
        if is_alone(item):
            item.add_marker(pytest.mark.xdist_group("alone"))


def is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def pytest_collection_finish(session: pytest.Session) -> None:
    if getattr(session.config.option, "loadgroup", False):
        grouped = [item.nodeid for item in session.items if item.get_closest_marker("xdist_group")]
        assert all("@" in each for each in grouped), "pytest-xdist saw no group"


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the test's clock starts
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with LOCK.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX if is_alone(item) else fcntl.LOCK_SH)
        return (yield)


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster with the release installed in `asya-system`, under restricted PodSecurity."""
    return connected()


@pytest.fixture(autouse=True)
def as_usual(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    """The usual release, whatever an earlier test made of it."""
    if "free" in request.fixturenames:
        return
    with CHANGED.with_name("e2e.changed.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if CHANGED.exists():
            cluster.uninstall()
            cluster.install()
            CHANGED.unlink()


@pytest.fixture(scope="module")
def scene(cluster: Cluster) -> Iterator[Scene]:
    """Actors and load of the module's own."""
    with staged(cluster) as made:
        yield made


@pytest.fixture
def changing(cluster: Cluster) -> Cluster:
    """The cluster for a test, to be run alone, that leaves another release than the usual one."""
    CHANGED.touch()
    return cluster


@pytest.fixture
def free(changing: Cluster) -> Cluster:
    """The same without a release."""
    changing.uninstall()
    return changing


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, under restricted PodSecurity; left for a look if it fails."""
    name = f"e2e-{os.urandom(4).hex()}"
    cluster.make_namespace(name)
    yield name
    if not request.node.stash.get(_FAILED, False):
        cluster.kubectl("delete", "namespace", name, "--wait=false")


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None] | pytest.TestReport:
    report: pytest.TestReport = yield  # type: ignore[misc, assignment]
    if report.failed:
        item.stash[_FAILED] = True
        if item.get_closest_marker("alone"):  # it may not have come to putting things back
            CHANGED.touch()
        arguments = getattr(item, "funcargs", {})
        scene = getattr(arguments.get("scene"), "namespace", None)
        for namespace in filter(None, (arguments.get("namespace"), scene, SYSTEM)):
            report.sections.append((f"namespace {namespace}", _look(namespace)))
    return report


def _look(namespace: str) -> str:
    """Pods, events and logs, as much as a person would ask for."""

    def say(*words: str) -> str:
        done = run("kubectl", "-n", namespace, *words, check=False)
        return f"$ kubectl -n {namespace} {' '.join(words)}\n{done.stdout}{done.stderr}\n"

    text = say("get", "all,configmaps", "-o", "wide") + say(
        "get", "events", "--sort-by=.lastTimestamp"
    )
    listed = run("kubectl", "-n", namespace, "get", "pods", "-o", "json", check=False)
    pods = json.loads(listed.stdout)["items"] if listed.returncode == 0 else []
    for pod in pods:
        name = pod["metadata"]["name"]
        text += say("logs", name, "--all-containers", "--prefix", "--tail=40")
    return text


@pytest.hookimpl(trylast=True)  # after the slowest tests: these are the lines to be read
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The last lines: what grew, and what each fault did, as the tests recorded it.

    A test may have run in another process; its report brings the properties along.
    """
    if hasattr(terminalreporter.config, "workerinput"):
        return  # each process is asked, for what it has run itself
    reports = [one for all_ in terminalreporter.stats.values() for one in all_]
    recorded = [
        (name, json.loads(str(value)))
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
        if name in ("trend", "row")
    ]
    for kind, title, header in (
        ("trend", "what grew", trend.HEADER),
        ("row", "what was lost", ledger.HEADER),
    ):
        rows = [cells for name, cells in recorded if name == kind]
        if rows:
            terminalreporter.section(title)
            for line in ledger.as_text([header, *rows]):
                terminalreporter.line(line)
        if rows and kind == "row" and os.environ.get("DOCS"):
            _write_page(ledger.as_markdown([header, *rows]))


def _write_page(table: list[str]) -> None:
    """Replace the table between the markers of docs/operations.md."""
    begin, end = "<!-- measured: begin -->", "<!-- measured: end -->"
    page = REPOSITORY / "docs/operations.md"
    before, _, rest = page.read_text().partition(begin)
    where = f"{dt.datetime.now(dt.UTC).date().isoformat()}, {os.cpu_count()} cores."
    lines = [f"{before}{begin}", where, "", *table, f"{end}{rest.partition(end)[2]}"]
    page.write_text("\n".join(lines))
