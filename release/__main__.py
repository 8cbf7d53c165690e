"""`python -m release`: build a release in a folder; push it to a registry and sign it there."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from release import archives, changelog, chart, docker, image, plugin, sbom, signing, summary
from release.options import REPOSITORY, Options, ReleaseError, is_loopback, read_options

WORK = REPOSITORY / "build/release"
# Names of the files of a release; nothing else is deleted.
_FILES = (
    "asya-injector-*", "asya-runtime-*", "asya_injector-*", "kubectl-asya-*", "asya.yaml",
    "cosign.pub", "INSTALL.md", "NOTES.md", "SHA256SUMS", "SHA256SUMS.sigstore.json", ".gitignore",
)  # fmt: skip


@dataclass
class Release:
    """A release while it is made. dist: where its files are."""

    options: Options
    dist: Path
    image_digest: str = ""
    chart_digest: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)

    def say(self, what: str) -> None:
        """Print one line of progress, with the seconds since the start."""
        print(f"[{time.monotonic() - self._started:3.0f} s] {what}", file=sys.stderr, flush=True)

    def build(self) -> None:
        """Build all files. Equal commits give equal files."""
        options = self.options
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir(parents=True)
        for path in list_files(self.dist):
            path.unlink()
        self.dist.mkdir(parents=True, exist_ok=True)

        self.say("image")
        builds = list(docker.build_all(WORK, self.left_out))
        layout = WORK / "image"
        self.image_digest = image.write_layout(
            builds, layout, epoch=options.epoch, about=options.about
        )
        with (self.dist / f"asya-injector-{options.version}.oci.tar").open("wb") as stream:
            archives.write_tar(layout, stream, epoch=options.epoch)
        for platform, why in self.left_out.items():
            self.say(f"{platform} is left out: {why}")

        self.say("chart")
        notes = changelog.notes((REPOSITORY / "CHANGELOG.md").read_text(), options.version)
        (self.dist / "NOTES.md").write_text(notes)
        reference = f"{options.image}:{options.version}@{self.image_digest}"
        chart.package(
            REPOSITORY / "chart",
            self.dist,
            image=options.image,
            digest=self.image_digest,
            annotations={
                "artifacthub.io/images": yaml.safe_dump(
                    [
                        {
                            "name": "asya-injector",
                            "image": reference,
                            "platforms": [build.platform for build in builds],
                        }
                    ],
                    sort_keys=False,
                    width=1000,
                ),
                "artifacthub.io/changes": yaml.safe_dump(
                    changelog.changes(notes), sort_keys=False, width=1000
                ),
            },
            epoch=options.epoch,
        )

        self.say("Python package")
        self._build_package()

        self.say("kubectl plugin")
        self._build_plugin()

        self.say("bills of materials")
        self._write_boms(builds)

    def _build_package(self) -> None:
        uv = os.environ.get("UV", "uv")
        subprocess.run(
            [uv, "build", "--quiet", "--no-build-isolation", "--python", sys.executable,
             "--out-dir", self.dist, REPOSITORY],
            check=True, env=os.environ | {"SOURCE_DATE_EPOCH": str(self.options.epoch)},
        )  # fmt: skip
        (self.dist / ".gitignore").unlink(missing_ok=True)

    def _build_plugin(self) -> None:
        version, epoch = self.options.version, self.options.epoch
        program = WORK / plugin.PROGRAM
        plugin.write_program(
            program,
            package=REPOSITORY / "injector/asya_injector",
            runtime=REPOSITORY / "runtime",
            site_packages=REPOSITORY / "build/image/site-packages",
            epoch=epoch,
        )
        archive = self.dist / f"{plugin.PROGRAM}-{version}.tar.gz"
        licenses = {"LICENSE": REPOSITORY / "LICENSE"}
        for found in (REPOSITORY / "build/image/site-packages").glob("*.dist-info"):
            name = found.name.partition("-")[0].lower()
            for path in found.rglob("LICENSE*") if name in {"click", "pyyaml"} else ():
                licenses[f"LICENSE.{name}"] = path
        plugin.write_archive(archive, program, licenses, epoch=epoch)
        (self.dist / f"{plugin.NAME}.yaml").write_text(
            plugin.manifest(
                version=version,
                uri=f"{self.options.homepage}/releases/download/v{version}/{archive.name}",
                sha256=archives.sha256(archive),
                homepage=self.options.homepage,
            )
        )

    def _write_boms(self, builds: list[image.Build]) -> None:
        version, epoch = self.options.version, self.options.epoch
        for build in builds:
            architecture = build.platform.rpartition("/")[2]
            sbom.write(
                self.dist / f"asya-injector-{version}-image-{architecture}.cdx.json",
                sbom.image_subject(self.options.image, version, self.image_digest),
                sbom.components(sbom.read_image(build.saved), architecture=architecture),
                epoch=epoch,
            )
        (wheel,) = self.dist.glob("*.whl")
        locked = sbom.read_requirements((REPOSITORY / "requirements.txt").read_text())
        sbom.write(
            self.dist / f"{wheel.stem}.cdx.json",
            sbom.package_subject("asya-injector", version, archives.sha256(wheel)),
            sbom.components(sbom.Contents(python=locked)),
            epoch=epoch,
        )

    def push(self, *, replace: bool) -> None:
        """Push image and chart to the registry.

        replace: another image or chart of this version, too. On this machine they always are.
        """
        options = self.options
        insecure = ["--insecure"] if options.plain_http else []
        reference = f"{options.image}:{options.version}"
        (archive,) = self.dist.glob("asya-runtime-*.tgz")
        if not replace and not is_loopback(options.registry):
            self._reject_other(reference, ["digest"], self.image_digest)
            chart_reference = f"{options.chart}:{options.version}"
            self._reject_other(chart_reference, ["manifest"], archives.sha256(archive))
        self.say(f"push to {options.registry}")
        docker.run("crane", "push", *insecure, "--index", str(WORK / "image"), reference)
        # Helm writes the time of the file into the chart's manifest.
        os.utime(archive, (options.epoch, options.epoch))
        plain = ["--plain-http"] if options.plain_http else []
        done = subprocess.run(
            ["helm", "push", *plain, archive, f"oci://{options.charts}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise ReleaseError(f"helm push: {done.stderr.strip()}")
        self.chart_digest = docker.run(
            "crane", "digest", *insecure, f"{options.chart}:{options.version}"
        )

    def _reject_other(self, reference: str, verb: list[str], digest: str) -> None:
        """Reject a push that would change what a version is.

        verb: of crane; what it prints has to contain the digest. A registry that cannot be asked
        refuses the push too, with its reason.
        """
        insecure = ["--insecure"] if self.options.plain_http else []
        present = docker.try_run("crane", *verb, *insecure, reference)
        if present is not None and digest not in present:
            raise ReleaseError(
                f"{reference}: the registry has this version with other content; set a new "
                "__version__ in injector/asya_injector/__init__.py, or set REPLACE=1 to replace it "
                "(VersionExists)"
            )

    def sign(self, key: str, public: str, *, pushed: bool) -> str:
        """Sign what is in the registry, and the checksums of the files; returns the summary.

        key, public: a private key and its public one; empty to sign keyless.
        """
        options = self.options
        signer = signing.Signer(key, WORK, options.homepage, options.plain_http)
        if public:
            (self.dist / "cosign.pub").write_text(public)
        if pushed:
            self.say("sign image and chart")
            signer.sign(f"{options.image}@{self.image_digest}")
            signer.sign(f"{options.chart}@{self.chart_digest}")
            for bom in self.dist.glob("*-image-*.cdx.json"):
                signer.attest(f"{options.image}@{self.image_digest}", bom)
        text = summary.write(
            options,
            signer,
            image_digest=self.image_digest,
            chart_digest=self.chart_digest,
            dist=self.dist,
        )
        (self.dist / "INSTALL.md").write_text(text)
        files = sorted(path for path in self.dist.iterdir() if path.is_file())
        sums = self.dist / "SHA256SUMS"
        sums.write_text("".join(f"{archives.sha256(path)}  {path.name}\n" for path in files))
        self.say("sign the checksums")
        signer.sign_file(sums)
        return text


def list_files(folder: Path) -> list[Path]:
    """The files of an earlier release in a folder, if any; raises ReleaseError for other files."""
    present = sorted(folder.iterdir()) if folder.exists() else []
    files = [path for path in present if path.is_file() and any(map(path.match, _FILES))]
    others = [path.name for path in present if path not in files]
    if others:
        raise ReleaseError(
            f"DIST: {folder} has other files than those of a release, the first is {others[0]}; "
            "name an empty or new folder (DistInUse)"
        )
    return files


def main() -> None:
    """Build, push and sign, as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m release", description=__doc__)
    parser.add_argument("--registry", default="", help="host and path, without https://")
    parser.add_argument("--dist", type=Path, default=Path("dist"), help="folder of the files")
    parser.add_argument("--push", action="store_true", help="push to the registry, and sign there")
    parser.add_argument("--plain-http", action="store_true", help="the registry has no TLS")
    parser.add_argument("--dirty", action="store_true", help="allow changes that are not committed")
    parser.add_argument("--keyless", action="store_true", help="sign as the identity of a workflow")
    parser.add_argument("--replace", action="store_true", help="push over another release")
    parser.add_argument(
        "--key", default="", help="cosign's private key, a file or a URL; a missing file is created"
    )
    parser.add_argument("--check", action="store_true", help="check the other arguments only")
    words = parser.parse_args()
    key = words.key or str(Path.home() / ".config/asya-runtime/cosign.key")
    try:
        options = read_options(words.registry, plain_http=words.plain_http, allow_dirty=words.dirty)
        release = Release(options, words.dist.resolve())
        list_files(release.dist)
        if words.check:
            return
        # A bad key must stop the release before it pushes anything that it cannot sign.
        key, public = ("", "") if words.keyless else signing.find_key(key)
        release.build()
        if words.push:
            release.push(replace=words.replace)
        text = release.sign(key, public, pushed=words.push)
    except (ReleaseError, signing.SigningError, ValueError) as error:
        sys.exit(f"release: {error}")
    except OSError as error:
        is_program = isinstance(error, FileNotFoundError) and os.sep not in str(error.filename)
        fix = "make it available, or choose another path (FileUnavailable)"
        fix = "install it (ProgramMissing)" if is_program else fix
        sys.exit(f"release: {error.filename}: {error.strerror}; {fix}")
    except subprocess.CalledProcessError as error:
        sys.exit(f"release: {' '.join(map(str, error.cmd))} ended with {error.returncode}")
    release.say(f"done: {words.dist}/")
    print(text)


if __name__ == "__main__":
    main()
