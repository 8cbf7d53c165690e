"""Certificates: issued, stored, validated, and renewed with an overlap."""

import datetime as dt
import ssl
from pathlib import Path

import pytest
from asya_injector.tls.authority import DamagedError, Decision, KeyPair, create, decide
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

NAMES = ["asya-runtime.asya-system.svc", "asya-runtime.asya-system"]
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)


def trusts(bundle: bytes, pair: KeyPair, *, at: dt.datetime, name: str = NAMES[0]) -> bool:
    """Whether a client with these CAs trusts the pair at a time, by an independent verifier."""
    store = Store(x509.load_pem_x509_certificates(bundle))
    verifier = PolicyBuilder().store(store).time(at).build_server_verifier(x509.DNSName(name))
    try:
        verifier.verify(x509.load_pem_x509_certificate(pair.certificate), [])
    except VerificationError:
        return False
    return True


@pytest.fixture(scope="module")
def pair() -> KeyPair:
    return create(NAMES, now=NOW)


@pytest.mark.parametrize("name", NAMES)
def test_a_new_certificate_is_trusted_for_each_of_its_names(pair: KeyPair, name: str) -> None:
    assert trusts(pair.bundle, pair, at=NOW, name=name)
    assert not trusts(pair.bundle, pair, at=NOW, name="elsewhere.svc")


def test_a_clock_an_hour_behind_trusts_it_too(pair: KeyPair) -> None:
    assert trusts(pair.bundle, pair, at=NOW - dt.timedelta(minutes=59))


def test_the_ca_cannot_sign_another_ca(pair: KeyPair) -> None:
    found = x509.load_pem_x509_certificate(pair.bundle).extensions
    limits = found.get_extension_for_class(x509.BasicConstraints)
    assert (limits.critical, limits.value) == (True, x509.BasicConstraints(True, 0))


def test_the_certificate_is_only_for_servers(pair: KeyPair) -> None:
    leaf = x509.load_pem_x509_certificate(pair.certificate)
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_supports_the_longest_name_of_a_service() -> None:
    names = [f"{'s' * 63}.{'n' * 63}.svc"]
    pair = create(names, now=NOW)
    assert trusts(pair.bundle, pair, at=NOW, name=names[0])


def test_openssl_loads_it(pair: KeyPair, tmp_path: Path) -> None:
    (tmp_path / "crt").write_bytes(pair.certificate)
    (tmp_path / "key").write_bytes(pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "crt", tmp_path / "key")


def test_a_secret_restores_the_same_pair(pair: KeyPair) -> None:
    assert KeyPair.from_secret(pair.to_secret()) == pair


@pytest.mark.parametrize("part", ["tls.crt", "tls.key", "ca.crt", "ca.key"])
@pytest.mark.parametrize("damage", ["missing", "empty", "not base64", "not PEM", "of another pair"])
def test_rejects_a_damaged_secret(pair: KeyPair, part: str, damage: str) -> None:
    data = pair.to_secret()
    if damage == "missing":
        del data[part]
    else:
        data[part] = {
            "empty": "",
            "not base64": "%%%",
            "not PEM": "AAAA",
            "of another pair": create(NAMES, now=NOW).to_secret()[part],
        }[damage]
    with pytest.raises(DamagedError):
        KeyPair.from_secret(data)


def test_rejects_a_certificate_signed_by_another_ca(pair: KeyPair) -> None:
    other = create(NAMES, now=NOW).to_secret()
    mixed = {**pair.to_secret(), "tls.crt": other["tls.crt"], "tls.key": other["tls.key"]}
    with pytest.raises(DamagedError):
        KeyPair.from_secret(mixed)


@pytest.mark.parametrize(
    ("names", "days", "due"),
    [
        (NAMES, 0, False),
        (NAMES, 59, False),
        (NAMES, 61, True),
        (NAMES, 1000, True),
        (NAMES, -1, True),
        (["other.svc"], 0, True),
    ],
)
def test_is_due_a_month_before_it_expires_and_for_other_names(
    pair: KeyPair, names: list[str], days: int, due: bool
) -> None:
    assert pair.is_due(names, now=NOW + days * DAY) is due


def test_a_renewal_keeps_the_ca_so_ca_bundle_stays_valid(pair: KeyPair) -> None:
    renewed = pair.renew(NAMES, now=NOW + 61 * DAY)
    assert renewed.bundle == pair.bundle
    assert renewed.certificate != pair.certificate
    assert trusts(pair.bundle, renewed, at=NOW + 100 * DAY)
    assert KeyPair.from_secret(renewed.to_secret()) == renewed


def test_a_new_ca_keeps_the_old_one_in_the_bundle_until_that_expires(pair: KeyPair) -> None:
    late = NOW + 3600 * DAY
    renewed = pair.renew(NAMES, now=late)
    assert not trusts(pair.bundle, renewed, at=late)
    assert trusts(renewed.bundle, renewed, at=late)
    assert renewed.bundle.endswith(pair.bundle)
    assert KeyPair.from_secret(renewed.to_secret()) == renewed
    after = renewed.renew(NAMES, now=NOW + 7400 * DAY)
    assert pair.bundle not in after.bundle


def test_replaces_a_ca_that_is_not_valid_yet(pair: KeyPair) -> None:
    early = NOW - 2 * DAY  # the API server's clock was set back
    renewed = pair.renew(NAMES, now=early)
    assert trusts(renewed.bundle, renewed, at=early)
    assert renewed.bundle.endswith(pair.bundle)


LATE = NOW + 61 * DAY  # a certificate of NOW is due
EMPTY: dict[str, str] = {}


@pytest.mark.parametrize(
    ("stored", "remembered", "now", "action", "outcome"),
    [
        # No Secret, or one as the chart renders it: without data.
        ("nothing", None, NOW, "create", "new"),
        ("empty", None, NOW, "replace", "new"),
        ("nothing", "own", NOW, "create", "own"),
        ("empty", "own", NOW, "replace", "own"),
        ("nothing", "own", LATE, "create", "own, renewed"),
        # A valid Secret is kept, even if another replica wrote it.
        ("own", None, NOW, "keep", "own"),
        ("own", "own", NOW, "keep", "own"),
        ("other", "own", NOW, "keep", "other"),
        # Due: the stored pair is renewed, not the remembered one.
        ("own", None, LATE, "replace", "own, renewed"),
        ("other", "own", LATE, "replace", "other, renewed"),
        # Damaged: restored if remembered, else replaced by a new pair.
        ("damaged", None, NOW, "replace", "new"),
        ("damaged", "own", NOW, "replace", "own"),
        ("damaged", "own", LATE, "replace", "own, renewed"),
    ],
)
def test_decides_what_to_do_with_the_secret(
    pair: KeyPair, stored: str, remembered: str | None, now: dt.datetime, action: str, outcome: str
) -> None:
    other = create(NAMES, now=NOW)
    secrets = {
        "nothing": None,
        "empty": EMPTY,
        "own": pair.to_secret(),
        "other": other.to_secret(),
        "damaged": {**other.to_secret(), "tls.key": "AAAA"},
    }
    decision = decide(
        secrets[stored], remembered=pair if remembered else None, names=NAMES, now=now
    )
    assert decision.action == action
    assert bool(decision.reason) == (action != "keep")
    assert trusts(decision.pair.bundle, decision.pair, at=now)
    known = {"own": pair, "other": other}
    name, _, how = outcome.partition(", ")
    if name == "new":
        assert decision.pair.bundle not in (pair.bundle, other.bundle)
    elif how:
        assert decision.pair.bundle == known[name].bundle
        assert decision.pair.certificate != known[name].certificate
    else:
        assert decision.pair == known[name]


def test_renews_a_certificate_for_other_names(pair: KeyPair) -> None:
    decision = decide(pair.to_secret(), remembered=None, names=["elsewhere.svc"], now=NOW)
    assert isinstance(decision, Decision)
    assert decision.action == "replace"
    assert trusts(pair.bundle, decision.pair, at=NOW, name="elsewhere.svc")
