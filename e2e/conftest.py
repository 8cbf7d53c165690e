"""A cluster with the release, a namespace for each test, and a report of it on failure.

Tests run in parallel, in the processes of pytest-xdist. A test marked `alone` runs without others.
README.md in this folder describes how to write a test.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from asya_injector.runtime_image import MIN_KUBERNETES

from e2e.harness import IMAGE_DELIVERY, MADE_HERE, REPOSITORY, SYSTEM, Cluster, connect, run
from e2e.load import ledger, queue, trend
from e2e.load.faults import NODE, Scene, staged
from tests.support.tables import Table, write_section

# Files of this cluster's tests; those of another cluster may run at the same time.
LOCK = REPOSITORY / "build" / f"{NODE}.e2e.lock"
CHANGED = LOCK.with_suffix(".changed")  # exists while the release is not the usual one
# Fixtures that install what their tests need, in the order in which their tests run.
OWN_RELEASE = ("free", "sidecar_release", "image_release")

# Tables of what tests record in their properties: title, header, columns of text, section of the
# documentation that has it.
SUMMARIES = {
    "trend": ("what grew", trend.HEADER, 2, ""),
    "row": ("what was lost", ledger.HEADER, 2, "faults"),
    "queue-row": ("what became of messages in queues", queue.HEADER, 1, "queue-faults"),
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: no other test runs at the same time")
    LOCK.parent.mkdir(exist_ok=True)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Prepare the cluster before pytest-xdist starts workers, which inherit the environment."""
    if hasattr(session.config, "workerinput") or session.config.option.collectonly:
        return
    if not os.environ.get("INJECTOR_IMAGE") or not shutil.which("kubectl"):
        pytest.exit(
            "run these tests with `make e2e`, which creates the cluster, tools and images", 2
        )
    os.environ["MODEL_IMAGES"] = run(
        str(REPOSITORY / "e2e/cluster/model-images.sh"), timeout=900
    ).stdout
    cluster = connect(os.environ["INJECTOR_IMAGE"], os.environ["MODEL_IMAGES"])
    cluster.uninstall()
    cluster.kubectl("delete", "namespaces", "-l", MADE_HERE, "--wait=false")
    cluster.kubectl("delete", "namespace", SYSTEM, "--ignore-not-found", "--timeout=240s")
    cluster.make_namespace(SYSTEM)
    cluster.install()
    CHANGED.unlink(missing_ok=True)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first, a group as a whole, so that all workers end at the same time.

    Tests that run alone come last; of them, those that change the release, then those that start
    without one, and those of other releases. They are one group and run in one process, so that a
    module's fixtures exist once and are gone when the next module starts.
    """
    units: dict[str, list[pytest.Item]] = {}
    for item in items:
        group = item.get_closest_marker("xdist_group")
        units.setdefault(group.args[0] if group else item.nodeid, []).append(item)

    def order(unit: list[pytest.Item]) -> tuple[bool, list[bool], float]:
        markers = [item.get_closest_marker("timeout") for item in unit]
        longest = sum(float(marker.args[0]) for marker in markers if marker)
        fixtures = getattr(unit[0], "fixturenames", ())
        changes = [each in fixtures for each in (*reversed(OWN_RELEASE), "changing")]
        return is_alone(unit[0]), changes, -longest

    ordered = sorted(units.values(), key=order)
    single = [unit for unit in ordered if len(unit) == 1 and not is_alone(unit[0])]
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0"))
    if single and processes:  # a worker gets two at once: put a short one behind the longest
        ordered.remove(single[-1])
        ordered.insert(processes, single[-1])
    items[:] = [item for unit in ordered for item in unit]
    for item in items:
        if is_alone(item):
            item.add_marker(pytest.mark.xdist_group("alone"))
        # The order is by what a test takes; what ends it is only for a test that hangs.
        marker = item.get_closest_marker("timeout")
        limit = max(600.0, 3 * float(marker.args[0]) if marker else 0.0)
        item.add_marker(pytest.mark.timeout(limit), append=False)


def is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def pytest_collection_finish(session: pytest.Session) -> None:
    if getattr(session.config.option, "loadgroup", False):
        grouped = [item.nodeid for item in session.items if item.get_closest_marker("xdist_group")]
        assert all("@" in each for each in grouped), "pytest-xdist did not see the groups"


@pytest.hookimpl(wrapper=True, tryfirst=True)  # before the test's clock starts
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with LOCK.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX if is_alone(item) else fcntl.LOCK_SH)
        return (yield)


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The cluster with the release installed in `asya-system`, under restricted PodSecurity."""
    return connect(os.environ["INJECTOR_IMAGE"], os.environ["MODEL_IMAGES"])


@pytest.fixture(autouse=True)
def usual_release(cluster: Cluster, request: pytest.FixtureRequest) -> None:
    """Restore the usual release if an earlier test changed it."""
    if {*OWN_RELEASE, "outage"}.isdisjoint(request.fixturenames):
        restore_release(cluster)


def restore_release(cluster: Cluster) -> None:
    """Install the usual release again if it was changed."""
    with CHANGED.with_suffix(".changed-lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if CHANGED.exists():
            cluster.uninstall()
            cluster.install()
            CHANGED.unlink()


@pytest.fixture(scope="module")
def scene(cluster: Cluster) -> Iterator[Scene]:
    """Actors and load for a module."""
    with staged(cluster) as scene:
        yield scene


@pytest.fixture
def changing(cluster: Cluster) -> Cluster:
    """The cluster, for a test marked `alone` that changes the release."""
    CHANGED.touch()
    return cluster


@pytest.fixture
def free(changing: Cluster) -> Cluster:
    """The cluster without a release, for a test marked `alone`."""
    changing.uninstall()
    return changing


@contextmanager
def own_release(cluster: Cluster) -> Iterator[None]:
    """A cluster without the usual release; what is installed in the context is uninstalled."""
    CHANGED.touch()
    cluster.uninstall()
    yield
    cluster.uninstall()  # or the demos, which keep the values of a release, would get these


@pytest.fixture(scope="session")
def image_volumes(cluster: Cluster) -> None:
    """Skips a test where pods cannot mount images, before anything is created."""
    version = cluster.version()
    if version < MIN_KUBERNETES:
        wanted, found = (".".join(map(str, each)) for each in (MIN_KUBERNETES, version))
        pytest.skip(f"image volumes need Kubernetes {wanted}, and this is {found}")


@pytest.fixture(scope="module")
def image_release(cluster: Cluster, image_volumes: None) -> Iterator[Cluster]:
    """The cluster with a release whose pods mount the runtime from the injector's image.

    For tests marked `alone`; a test that changes the release restores it.
    """
    with own_release(cluster):
        cluster.install(IMAGE_DELIVERY)
        yield cluster


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace under restricted PodSecurity; it stays if the test fails."""
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
        if item.get_closest_marker("alone"):  # it may not have restored the release
            CHANGED.touch()
        arguments = getattr(item, "funcargs", {})
        modules = ("scene", "outage", "pipeline")  # fixtures with a namespace for a module
        staged = [getattr(arguments.get(each), "namespace", None) for each in modules]
        for namespace in filter(None, (arguments.get("namespace"), *staged, SYSTEM)):
            report.sections.append((f"namespace {namespace}", _describe(namespace)))
    return report


def _describe(namespace: str) -> str:
    """Pods, events and logs of a namespace."""

    def kubectl(*words: str) -> str:
        done = run("kubectl", "-n", namespace, *words, check=False)
        return f"$ kubectl -n {namespace} {' '.join(words)}\n{done.stdout}{done.stderr}\n"

    text = kubectl("get", "all,configmaps", "-o", "wide") + kubectl(
        "get", "events", "--sort-by=.lastTimestamp"
    )
    listed = run("kubectl", "-n", namespace, "get", "pods", "-o", "json", check=False)
    pods = json.loads(listed.stdout)["items"] if listed.returncode == 0 else []
    for pod in pods:
        name = pod["metadata"]["name"]
        text += kubectl("logs", name, "--all-containers", "--prefix", "--tail=40")
    return text


@pytest.hookimpl(trylast=True)  # after pytest's list of the slowest tests
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what grew and what each fault did, as the tests recorded it in their properties."""
    if hasattr(terminalreporter.config, "workerinput"):
        return  # the first process has all reports
    reports = [one for all_ in terminalreporter.stats.values() for one in all_]
    recorded = [
        (name, json.loads(str(value)))
        for report in reports
        if isinstance(report, pytest.TestReport) and report.when == "call"
        for name, value in report.user_properties
        if name in SUMMARIES
    ]
    for kind, (title, header, texts, section) in SUMMARIES.items():
        rows = [cells for name, cells in recorded if name == kind]
        if not rows:
            continue
        table = Table([header, *rows], texts=texts)
        terminalreporter.section(title)
        for line in table.as_text():
            terminalreporter.line(line)
        if section and os.environ.get("DOCS"):
            where = f"{dt.datetime.now(dt.UTC).date().isoformat()}, {os.cpu_count()} cores."
            write_section(section, [where, "", *table.as_markdown()])
