"""The webhook's CA and serving certificate: issue, validate, renew. No I/O.

The CA is valid for ten years, and the API server gets its certificate as `caBundle`. The serving
certificate is valid for 90 days. One Secret holds both.
"""

import base64
import binascii
import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_CA_LIFE = dt.timedelta(days=3650)
_LEAF_LIFE = dt.timedelta(days=90)
_RENEW_BEFORE = dt.timedelta(days=30)
# Early enough that a new CA is trusted long before a serving certificate outlives the old one.
_REPLACE_CA_BEFORE = dt.timedelta(days=180)
# Tolerates clocks that differ between the API server and nodes.
_SKEW = dt.timedelta(hours=1)

CERTIFICATE, KEY, CA_BUNDLE, CA_KEY = "tls.crt", "tls.key", "ca.crt", "ca.key"


class DamagedError(ValueError):
    """The Secret does not hold a valid pair."""


@dataclass(frozen=True)
class KeyPair:
    """A serving certificate with its key, and the CA that signed it; all PEM.

    `bundle` starts with the current CA's certificate; earlier ones follow until they expire.
    """

    certificate: bytes
    key: bytes
    bundle: bytes
    ca_key: bytes

    def to_secret(self) -> dict[str, str]:
        """The `data` of a Secret."""
        parts = {CERTIFICATE: self.certificate, KEY: self.key}
        parts |= {CA_BUNDLE: self.bundle, CA_KEY: self.ca_key}
        return {name: base64.b64encode(part).decode() for name, part in parts.items()}

    @classmethod
    def from_secret(cls, data: Mapping[str, str]) -> Self:
        """Parse and validate the `data` of a Secret; raises DamagedError."""
        try:
            parts = [base64.b64decode(data[name]) for name in (CERTIFICATE, KEY, CA_BUNDLE, CA_KEY)]
            pair = cls(*parts)
            leaf = x509.load_pem_x509_certificate(pair.certificate)
            authority = pair._authority()
            leaf.verify_directly_issued_by(authority)
            for certificate, key in ((leaf, pair.key), (authority, pair.ca_key)):
                if certificate.public_key() != _load_key(key).public_key():
                    raise DamagedError("a key does not belong to its certificate")
        except KeyError as error:
            raise DamagedError(f"{error} is missing") from None
        except (ValueError, TypeError, InvalidSignature, binascii.Error) as error:
            raise DamagedError(str(error) or type(error).__name__) from None
        return pair

    def _authority(self) -> x509.Certificate:
        return x509.load_pem_x509_certificates(self.bundle)[0]

    @property
    def expires(self) -> dt.datetime:
        """Expiry of the serving certificate."""
        return x509.load_pem_x509_certificate(self.certificate).not_valid_after_utc

    def is_due(self, names: list[str], *, now: dt.datetime) -> bool:
        """Whether it must be renewed: it expires soon, or lacks these DNS names."""
        leaf = x509.load_pem_x509_certificate(self.certificate)
        alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return (
            now > leaf.not_valid_after_utc - _RENEW_BEFORE
            or now < leaf.not_valid_before_utc
            or alternatives.get_values_for_type(x509.DNSName) != names
        )

    def renew(self, names: list[str], *, now: dt.datetime) -> "KeyPair":
        """A new serving certificate from the same CA, or from a new CA if that expires soon.

        The bundle keeps the old CA.
        """
        authority = self._authority()
        if (
            authority.not_valid_before_utc
            <= now
            <= authority.not_valid_after_utc - _REPLACE_CA_BEFORE
        ):
            return _sign(authority, _load_key(self.ca_key), self.bundle, names, now=now)
        fresh = create(names, now=now)
        valid = [
            certificate.public_bytes(serialization.Encoding.PEM)
            for certificate in x509.load_pem_x509_certificates(self.bundle)
            if now <= certificate.not_valid_after_utc
        ]
        bundle = b"".join([fresh.bundle, *valid])
        return KeyPair(fresh.certificate, fresh.key, bundle, fresh.ca_key)


@dataclass(frozen=True)
class Decision:
    """What a replica does with the Secret.

    pair: the pair that it serves afterwards.
    action: `keep` the Secret, `create` it, or `replace` its data with the pair.
    reason: what is wrong with the current Secret; empty for `keep`.
    """

    pair: KeyPair
    action: str
    reason: str = ""


def decide(
    stored: Mapping[str, str] | None,
    *,
    remembered: KeyPair | None,
    names: list[str],
    now: dt.datetime,
) -> Decision:
    """What to do with the Secret.

    stored: its data; None without a Secret.
    remembered: the pair that this replica serves, if any.

    A replica restores a lost pair as long as it remembers it. With a new CA, calls would fail on
    replicas that have not read the Secret yet.
    """
    action = "create" if stored is None else "replace"
    pair, reason = None, "not found" if stored is None else "empty"
    if stored:
        try:
            pair = KeyPair.from_secret(stored)
        except DamagedError as error:
            reason = f"damaged: {error}"
        else:
            if not pair.is_due(names, now=now):
                return Decision(pair, "keep")
            reason = "the certificate expires soon, or lacks the Service's DNS names"
    pair = pair or remembered
    if pair is None:
        pair = create(names, now=now)
    elif pair.is_due(names, now=now):
        pair = pair.renew(names, now=now)
    return Decision(pair, action, reason)


def create(names: list[str], *, now: dt.datetime) -> KeyPair:
    """A new CA and a certificate for these DNS names (the first is the subject's)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "asya-injector CA")])
    authority = (
        _builder(subject, subject, key.public_key(), now=now, life=_CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    bundle = authority.public_bytes(serialization.Encoding.PEM)
    return _sign(authority, key, bundle, names, now=now)


def _sign(
    authority: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    bundle: bytes,
    names: list[str],
    *,
    now: dt.datetime,
) -> KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    # A common name holds 64 characters at most; clients look at the alternative names alone.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    certificate = (
        _builder(subject, authority.subject, key.public_key(), now=now, life=_LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(usage, critical=False)
        .add_extension(alternatives, critical=False)
        .add_extension(identifier, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    return KeyPair(pem, _dump_key(key), bundle, _dump_key(ca_key))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    *,
    now: dt.datetime,
    life: dt.timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + life)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _dump_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(pem, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DamagedError("a key is not an elliptic-curve key, which the injector creates")
    return key
