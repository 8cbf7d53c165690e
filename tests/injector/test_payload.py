"""The ConfigMap that pods mount: its name tells its content."""

import subprocess
from pathlib import Path

import pytest
from asya_injector.version import Payload

RUNTIME = Path(__file__).parent.parent.parent / "runtime"


def test_the_hash_is_what_sha256sum_says_of_the_files() -> None:
    said = subprocess.run(
        "sha256sum *.py | sha256sum", shell=True, cwd=RUNTIME, capture_output=True, check=True
    ).stdout.decode()
    assert Payload.load(RUNTIME).hash == said[:10]


def test_the_config_map_is_immutable_and_named_by_its_content() -> None:
    payload = Payload({"asya_runtime.py": "1", "asya_entrypoint.py": "2"})
    assert payload.config_map() == {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"asya-runtime-{payload.hash}",
            "labels": {
                "app.kubernetes.io/managed-by": "asya-injector",
                "asya.sh/runtime-hash": payload.hash,
            },
        },
        "immutable": True,
        "data": {"asya_runtime.py": "1", "asya_entrypoint.py": "2"},
    }


def test_a_byte_more_is_another_name() -> None:
    one = Payload({"asya_runtime.py": "1", "asya_entrypoint.py": "2"})
    other = Payload({"asya_runtime.py": "1", "asya_entrypoint.py": "2\n"})
    assert one.hash != other.hash


def test_a_missing_file_is_no_payload(tmp_path: Path) -> None:
    (tmp_path / "asya_runtime.py").write_text("1")
    with pytest.raises(FileNotFoundError, match=r"asya_entrypoint\.py"):
        Payload.load(tmp_path)
