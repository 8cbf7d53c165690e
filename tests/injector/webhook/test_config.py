"""The settings of the injector process: defaults, and one-line errors."""

from pathlib import Path

import pytest
from asya_injector.runtime_image import Delivery, RuntimeImage
from asya_injector.webhook.config import Config, ConfigError

REQUIRED = {
    "INJECTOR_NAMESPACE": "asya-system",
    "INJECTOR_SERVICE": "asya-runtime",
    "INJECTOR_WEBHOOK_CONFIGURATION": "asya-runtime",
    "INJECTOR_TLS_SECRET": "asya-runtime-tls",
}


def test_unset_settings_have_defaults() -> None:
    assert Config.from_env(REQUIRED) == Config(
        namespace="asya-system",
        tls_mode="self",
        service="asya-runtime",
        webhook_configuration="asya-runtime",
        tls_secret="asya-runtime-tls",
        tls_directory=Path("/tls"),
        runtime_directory=Path("/etc/asya-runtime"),
        delivery=Delivery(),
        defaults={},
        sidecar=None,
        webhook_port=9443,
        http_port=8080,
        log_level="INFO",
    )


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("state", ["unset", "empty"])
def test_rejects_a_missing_setting_by_its_name(name: str, state: str) -> None:
    environ = {key: value for key, value in REQUIRED.items() if key != name}
    if state == "empty":
        environ[name] = ""
    with pytest.raises(ConfigError, match=f"^{name} is not set"):
        Config.from_env(environ)


def test_a_mounted_certificate_needs_neither_secret_nor_webhook_configuration() -> None:
    environ = {"INJECTOR_NAMESPACE": "asya-system", "INJECTOR_SERVICE": "asya-runtime"}
    config = Config.from_env(
        environ | {"INJECTOR_TLS_MODE": "files", "INJECTOR_TLS_DIRECTORY": "/certificate"}
    )
    assert (config.tls_mode, config.tls_directory) == ("files", Path("/certificate"))
    assert config.dns_names[0] == "asya-runtime.asya-system.svc"


def test_a_runtime_image_needs_the_name_of_the_injectors_image() -> None:
    environ = {**REQUIRED, "INJECTOR_RUNTIME_IMAGE": "files:1"}
    with pytest.raises(ConfigError, match=r"^INJECTOR_IMAGE is not set"):
        Config.from_env(environ)
    environ |= {"INJECTOR_IMAGE": "injector:1", "INJECTOR_RUNTIME_PULL_POLICY": "Always"}
    delivery = Config.from_env(environ).delivery
    assert delivery == Delivery(RuntimeImage("files:1", "Always"), "injector:1")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("INJECTOR_RUNTIME_IMAGE", "files:1 "),
        ("INJECTOR_RUNTIME_PULL_POLICY", "Sometimes"),
        ("INJECTOR_WEBHOOK_PORT", "0"),
        ("INJECTOR_WEBHOOK_PORT", "65536"),
        ("INJECTOR_HTTP_PORT", "http"),
        ("INJECTOR_LOG_LEVEL", "loud"),
        ("INJECTOR_TLS_MODE", "Self"),
        ("INJECTOR_DEFAULTS", "{"),
        ("INJECTOR_DEFAULTS", "[]"),
        ("INJECTOR_DEFAULTS", '{"chunk-size": 4096}'),
    ],
)
def test_rejects_an_invalid_setting_and_says_what_is_valid(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: .* is not valid; must be "):
        Config.from_env({**REQUIRED, name: text})


def test_the_sidecar_is_read_from_json() -> None:
    text = '{"container": {"name": "asya-sidecar", "image": "queue:1"}, "native": false}'
    sidecar = Config.from_env({**REQUIRED, "INJECTOR_SIDECAR": text}).sidecar
    assert sidecar is not None
    assert (sidecar.name, sidecar.native) == ("asya-sidecar", False)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "is not JSON; the chart sets it"),
        ("[" * 100_000, "is not JSON; the chart sets it"),
        ("[]", "sidecar: is not a mapping; see the chart's README"),
        (
            '{"container": {"name": "a"}}',
            "sidecar.container.image: is required; set it to an image",
        ),
    ],
)
def test_rejects_an_invalid_sidecar_with_its_line(text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_env({**REQUIRED, "INJECTOR_SIDECAR": text})
    assert str(caught.value) == f"INJECTOR_SIDECAR: {line}"
