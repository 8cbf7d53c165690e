"""What `pip install .` and `uv tool install .` give: a program that brings the runtime along."""

import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from asya_injector import __version__
from asya_injector.runtime_image import RUNTIME_FOLDER

REPOSITORY = Path(__file__).parents[2]
FILES = ("asya_runtime.py", "asya_entrypoint.py")
ANNOTATED = """\
apiVersion: v1
kind: Pod
metadata: {name: p, annotations: {asya.sh/handler: a.b}}
spec: {containers: [{name: model, image: m}]}
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout as the installers build it."""
    uv = shutil.which(os.environ.get("UV", "uv"))
    if uv is None:
        pytest.skip("uv builds the wheel; `make test` brings it")
    directory = tmp_path_factory.mktemp("wheel")
    words = [uv, "build", "--quiet", "--wheel", "--out-dir", str(directory), str(REPOSITORY)]
    subprocess.run(words, check=True, capture_output=True, timeout=250)
    (built,) = directory.glob("*.whl")
    return built


def test_the_wheel_carries_the_runtime_as_the_chart_does(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in FILES:
            text = archive.read(f"asya_injector/data/{name}")
            assert text == (REPOSITORY / "runtime" / name).read_bytes()
            assert text == (REPOSITORY / "chart" / "files" / name).read_bytes()
        names = archive.namelist()
    assert all(name.startswith(("asya_injector/", "asya_injector-")) for name in names)


def test_a_folder_of_the_image_holds_the_runtime_files_for_every_user_and_nothing_else(
    tmp_path: Path,
) -> None:
    """What pods mount with `runtime.delivery: image`; its part of the Dockerfile is run here."""
    dockerfile = (REPOSITORY / "injector/Dockerfile").read_text()
    (commands,) = re.findall(
        r"^RUN (install .*?) && python3 -m compileall", dockerfile, re.M | re.S
    )
    data = tmp_path / "app/asya_injector/data"
    data.mkdir(parents=True)
    for name in FILES:
        shutil.copy(REPOSITORY / "runtime" / name, data)
    (data / "__pycache__").mkdir()
    folder = f"/{RUNTIME_FOLDER}"
    for path in (folder, "/app/"):
        assert path in commands
        commands = commands.replace(f" {path}", f" {tmp_path}{path}")
    subprocess.run(["sh", "-euc", f"umask 077; {commands}"], check=True)
    built = tmp_path / RUNTIME_FOLDER
    assert stat.S_IMODE(built.stat().st_mode) == 0o755
    assert {path.name: path.read_bytes() for path in built.iterdir()} == {
        name: (REPOSITORY / "runtime" / name).read_bytes() for name in FILES
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in built.iterdir()} == {0o644}


def test_the_wheel_says_that_it_is_typed_and_which_version_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("asya_injector/py.typed") == b""
        metadata = archive.read(f"asya_injector-{__version__}.dist-info/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nClassifier: Typing :: Typed\n" in metadata
    assert "\nProject-URL: Repository, https://" in metadata


def test_the_installed_program_injects_outside_of_the_checkout(wheel: Path, tmp_path: Path) -> None:
    # Its dependencies are those of this environment, so that nothing is downloaded here.
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    words = [
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--offline",
        "--python",
        str(python),
        str(wheel),
    ]
    subprocess.run([os.environ.get("UV", "uv"), *words], check=True, timeout=250)
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    (Path(purelib) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    program = tmp_path / "venv" / "bin" / "asya-injector"
    done = subprocess.run(
        [program, "inject"], input=ANNOTATED, cwd=tmp_path, capture_output=True, text=True,
        check=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    first_line = (REPOSITORY / "runtime" / FILES[0]).read_text().splitlines()[0]
    assert f"  asya_runtime.py: |\n    {first_line}\n" in done.stdout
    assert "asya.sh/injected" in done.stdout
