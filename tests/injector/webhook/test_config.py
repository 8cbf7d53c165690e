"""The injector's own settings: one line says what is missing or wrong."""

from pathlib import Path

import pytest
from asya_injector.webhook.config import Config, ConfigError

REQUIRED = {
    "INJECTOR_NAMESPACE": "asya-system",
    "INJECTOR_SERVICE": "asya-runtime",
    "INJECTOR_WEBHOOK_CONFIGURATION": "asya-runtime",
    "INJECTOR_TLS_SECRET": "asya-runtime-tls",
}


def test_defaults_fill_what_the_chart_leaves_out() -> None:
    assert Config.from_env(REQUIRED) == Config(
        namespace="asya-system",
        tls_mode="self",
        service="asya-runtime",
        webhook_configuration="asya-runtime",
        tls_secret="asya-runtime-tls",
        tls_directory=Path("/tls"),
        runtime_directory=Path("/etc/asya-runtime"),
        defaults={},
        webhook_port=9443,
        http_port=8080,
        log_level="INFO",
    )


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("how", ["unset", "empty"])
def test_a_missing_setting_is_named(name: str, how: str) -> None:
    environ = {key: value for key, value in REQUIRED.items() if key != name}
    if how == "empty":
        environ[name] = ""
    with pytest.raises(ConfigError, match=f"^{name} is not set"):
        Config.from_env(environ)


def test_a_mounted_certificate_needs_no_secret_and_no_webhook_configuration() -> None:
    given = {"INJECTOR_NAMESPACE": "asya-system", "INJECTOR_SERVICE": "asya-runtime"}
    config = Config.from_env(
        given | {"INJECTOR_TLS_MODE": "files", "INJECTOR_TLS_DIRECTORY": "/certificate"}
    )
    assert (config.tls_mode, config.tls_directory) == ("files", Path("/certificate"))
    assert config.dns_names[0] == "asya-runtime.asya-system.svc"


@pytest.mark.parametrize(
    ("name", "text"),
    [
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
def test_a_wrong_setting_is_named_with_what_is_valid(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: .* is not valid; must be "):
        Config.from_env({**REQUIRED, name: text})
