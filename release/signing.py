"""Signatures with cosign: by a key pair, without a transparency log, or keyless."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


class SigningError(Exception):
    """cosign failed, with its last lines as the text."""


@dataclass(frozen=True)
class Signer:
    """Signs files and what a registry has.

    key: the private key; empty signs keyless, as the identity of the workflow that runs this.
    folder: where the description of the services that a signature needs is written. homepage:
    address of the repository, whose workflow signs keyless. plain_http: the registry has no TLS.
    """

    key: str
    folder: Path
    homepage: str
    plain_http: bool = False

    def sign_file(self, path: Path) -> Path:
        """Sign a file; returns the bundle with the signature."""
        bundle = path.with_name(f"{path.name}.sigstore.json")
        self._cosign("sign-blob", "--bundle", str(bundle), str(path))
        bundle.chmod(0o644)
        return bundle

    def sign(self, reference: str) -> None:
        """Sign an image or chart in a registry. reference: name@digest."""
        self._cosign("sign", *self._registry(), reference)

    def attest(self, reference: str, predicate: Path) -> None:
        """Attach a CycloneDX bill of materials to an image in a registry, as an attestation."""
        what = ["--type", "cyclonedx", "--predicate", str(predicate)]
        self._cosign("attest", *what, *self._registry(), reference)

    def verify_options(self, *, registry: bool = True) -> str:
        """The options with which `cosign verify` accepts these signatures."""
        if not self.key:
            workflow = f"{self.homepage}/.github/workflows/release.yml@".replace(".", r"\.")
            return (
                f"--certificate-identity-regexp '^{workflow}' "
                "--certificate-oidc-issuer https://token.actions.githubusercontent.com"
            )
        options = "--key cosign.pub --insecure-ignore-tlog"
        return f"{options} --allow-http-registry" if registry and self.plain_http else options

    def _registry(self) -> list[str]:
        return ["--allow-http-registry"] if self.plain_http else []

    def _cosign(self, verb: str, *words: str) -> None:
        with_key: list[str] = []
        if self.key:
            config = self.folder / "signing-config.json"
            run_cosign("signing-config", "create", "--out", str(config))
            with_key = ["--key", self.key, "--signing-config", str(config)]
        run_cosign(verb, "--yes", *with_key, *words)


def find_key(key: str) -> tuple[str, str]:
    """A private key for cosign, and its public key; a missing file is created.

    key: a path, or the URL of a key in another system, such as `awskms:///alias/releases`. Raises
    SigningError if the key cannot be used.
    """
    if "://" not in key:
        path = Path(key).resolve()
        if not path.exists():
            if path.suffix != ".key":
                raise SigningError(
                    f"KEY: {key} does not exist, and cosign creates only files that end in .key; "
                    "choose such a name (KeyInvalid)"
                )
            path.parent.mkdir(parents=True, exist_ok=True)
            run_cosign("generate-key-pair", "--output-key-prefix", str(path.with_suffix("")))
        key = str(path)
    return key, run_cosign("public-key", "--key", key)


def run_cosign(*words: str) -> str:
    """Run cosign and return its output; raises SigningError."""
    # Without a password in the environment cosign would ask for one.
    environment = {"COSIGN_PASSWORD": ""} | os.environ
    done = subprocess.run(
        ["cosign", *words], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode:
        last = " ".join(done.stderr.strip().splitlines()[-1:])
        raise SigningError(f"cosign {words[0]}: {last}")
    return done.stdout
