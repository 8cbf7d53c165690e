"""The commands to verify and install a release."""

from __future__ import annotations

from pathlib import Path

from release.options import Options
from release.signing import Signer

_NAMESPACE = "--namespace asya-system"


def write(
    options: Options, signer: Signer, *, image_digest: str, chart_digest: str, dist: Path
) -> str:
    """The commands as a Markdown page. chart_digest: empty if nothing was pushed."""
    version = options.version
    in_registry = signer.verify_options()
    in_files = signer.verify_options(registry=False)
    parts = [f"# asya-runtime {version}\n\nCommit {options.commit}.\n"]
    if chart_digest:
        plain = " --plain-http" if options.plain_http else ""
        parts += [
            "Install:\n",
            _block(
                f"helm install asya-runtime oci://{options.chart} --version {version}{plain} "
                f"{_NAMESPACE} --create-namespace --wait",
                f"helm test asya-runtime {_NAMESPACE}",
            ),
            "Verify image and chart:\n",
            _block(
                f"cosign verify {in_registry} {options.image}@{image_digest}",
                f"cosign verify {in_registry} {options.chart}@{chart_digest}",
                f"cosign verify-attestation --type cyclonedx {in_registry} "
                f"{options.image}@{image_digest}",
            ),
        ]
    else:
        parts += [
            "Nothing was pushed. The chart names the image by digest, so push both with "
            f"`make release REGISTRY={options.registry} PUSH=1`, which gives the same digests.\n"
        ]
    (wheel,) = dist.glob("*.whl")
    (plugin,) = dist.glob("kubectl-asya-*")
    parts += [
        "Verify the files, in their folder:\n",
        _block(
            f"cosign verify-blob {in_files} --bundle SHA256SUMS.sigstore.json SHA256SUMS",
            "sha256sum --check SHA256SUMS",
        ),
        "Install the command line, or the plugin for kubectl:\n",
        _block(
            f"pip install {wheel.name}",
            f"kubectl krew install --manifest=asya.yaml --archive={plugin.name}",
        ),
    ]
    return "\n".join(parts)


def _block(*commands: str) -> str:
    return "```\n" + "".join(f"{command}\n" for command in commands) + "```\n"
