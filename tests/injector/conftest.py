"""A stand-in API server, and the injector as a process that uses it."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from asya_injector.kube_client import ApiClient, connect

from tests.support.api_server import Api, api_server
from tests.support.injector_process import Injector

ROOT = Path(__file__).parents[2]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with api_server(tmp_path) as api:
        api.install()
        yield api


def run_script(script: str, text: str = "") -> subprocess.CompletedProcess[str]:
    """Run a Python script in a new process that can import the package.

    text: its standard input.
    """
    return subprocess.run(
        [sys.executable, "-c", script],
        input=text,
        env={"PYTHONPATH": str(ROOT / "injector")},
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.fixture
def start(tmp_path: Path, api: Api) -> Iterator[Callable[..., Injector]]:
    """Start an injector with additional settings; it is killed after the test."""
    with contextlib.ExitStack() as stack:

        def run(
            *,
            kubeconfig: Path | None = None,
            program: Sequence[str] = ("-m", "asya_injector", "run"),
            **environ: str,
        ) -> Injector:
            injector = Injector(tmp_path, kubeconfig or api.kubeconfig, program, **environ)
            stack.callback(injector.end)
            return injector

        yield run


def connect_with(kubeconfig: Path) -> ApiClient:
    """The injector's client for the API server of a kubeconfig."""
    with pytest.MonkeyPatch.context() as patch:
        location = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
        patch.setattr(location, str(kubeconfig))
        return connect()


@pytest.fixture
def connection(api: Api) -> Iterator[ApiClient]:
    """The injector's client for the stand-in API server."""
    client = connect_with(api.kubeconfig)
    yield client
    client.rest_client.pool_manager.clear()
