"""The image from which pods mount the runtime files, in place of a ConfigMap.

Image volumes: https://kubernetes.io/docs/concepts/storage/volumes/#image
"""

import hashlib
import re
from dataclasses import dataclass

# The folder of the image that holds the runtime files and nothing else; pods mount only this.
RUNTIME_FOLDER = "asya-runtime"
CONFIG_MAP, IMAGE = DELIVERIES = ("configMap", "image")
DEFAULT_PULL_POLICY, *_ = PULL_POLICIES = ("IfNotPresent", "Always", "Never")
# The variables in which the injector's process gets the images.
IMAGE_VARIABLE, RUNTIME_IMAGE_VARIABLE = "INJECTOR_IMAGE", "INJECTOR_RUNTIME_IMAGE"
# The first release of Kubernetes in which image volumes are stable.
MIN_KUBERNETES = (1, 36)

_MAX_LENGTH = 500
# As container runtimes read it: https://pkg.go.dev/github.com/distribution/reference
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST = rf"({_LABEL}(\.{_LABEL})*|\[[0-9a-fA-F:]+\])(:[0-9]+)?"
_NAME = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"({_HOST}/)?{_NAME}(/{_NAME})*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:(?P<digest>[0-9a-f]{64}))?",
    re.ASCII,
)


@dataclass(frozen=True)
class RuntimeImage:
    """An image with the runtime files; raises ValueError, with what is valid, for another text.

    reference: as in a container's `image`. pull_policy: one of `PULL_POLICIES`.
    """

    reference: str
    pull_policy: str = DEFAULT_PULL_POLICY

    def __post_init__(self) -> None:
        if len(self.reference) > _MAX_LENGTH or not _REFERENCE.fullmatch(self.reference):
            raise ValueError("the reference of an image, such as registry.example.com/team/name:1")
        if self.pull_policy not in PULL_POLICIES:
            raise ValueError(f"one of {', '.join(PULL_POLICIES)}")

    def identify(self) -> str:
        """Ten hex digits that identify an image whose content is unknown here.

        They come from its digest. Without a digest, they come from the SHA-256 of the reference,
        which identifies the tag but not the content.
        """
        match = _REFERENCE.fullmatch(self.reference)
        digest = match["digest"] if match else None
        return (digest or hashlib.sha256(self.reference.encode()).hexdigest())[:10]


@dataclass(frozen=True)
class Delivery:
    """What new pods mount.

    image: None: a ConfigMap. own: reference of the injector's image, which has the runtime files of
    its version; empty if it is unknown.
    """

    image: RuntimeImage | None = None
    own: str = ""

    def choose_hash(self, packaged: str) -> str:
        """The hash that stands for the runtime of these pods. packaged: of the runtime files."""
        if self.image is None or self.image.reference == self.own:
            return packaged
        return self.image.identify()

    def list_hashes(self, packaged: str) -> set[str]:
        """All hashes of such pods: manifests may have been injected without knowing `own`."""
        return {self.choose_hash(packaged)} | ({self.image.identify()} if self.image else set())
