"""An AdmissionReview (v1): the request, and the response that it gets. No I/O.

https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
"""

import base64
import json
import re
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Self

from asya_injector.errors import Reason
from asya_injector.http.body import BadRequestError
from asya_injector.kube_objects import Object
from asya_injector.mutation.workload import SYSTEM_NAMESPACES
from asya_injector.webhook.patch import build_json_patch

# The API server's are UUIDs.
_MAX_UID = 100
# https://kubernetes.io/docs/concepts/overview/working-with-objects/names/
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_MAX_NAME = 253


@dataclass
class Review:
    """The request, and the outcome once the object has been admitted or rejected.

    resource: group, version and plural name.
    object: the pod or workload as it would be stored; never modified. Empty once it is dropped.
    name: the object's name, or its `generateName`: the API server names such a pod only later.
    caller: the sender's address.
    deadline: the event loop's time by which the API server needs the answer.
    is_large: it takes so long that the event loop should not wait.
    on_drop: called when the object is no longer needed.
    result: `changed`, `unchanged`, `rejected` or `failed`; empty until decided.
    reason, rejection: code and text of a rejection.
    patch: JSON patch that injects the object, in base64; empty if nothing changes.
    mounts_configmap: the object is a pod that mounts the runtime ConfigMap.
    mounts_image: the object is a pod that mounts the runtime image, or a workload of such pods.
    """

    uid: str
    resource: tuple[str, str, str]
    subresource: str
    operation: str
    namespace: str
    dry_run: bool
    object: Object
    name: str = ""
    caller: str = ""
    deadline: float = 0.0
    is_large: bool = False
    on_drop: Callable[[], None] = lambda: None
    result: str = ""
    reason: str = ""
    rejection: str = ""
    patch: str = ""
    mounts_configmap: bool = False
    mounts_image: bool = False

    @classmethod
    def parse(cls, body: Any) -> Self:
        """Validate the fields that are used; raises BadRequestError."""
        request = _field(body, "request", dict, "the review")
        uid = _field(request, "uid", str, "request")
        if not 0 < len(uid) <= _MAX_UID:
            raise BadRequestError(400, f"request.uid is not 1 to {_MAX_UID} characters long")
        try:
            resource = _field(request, "resource", dict, "request")
            item = _field(request, "object", dict, "request")
            metadata = _field(item, "metadata", dict, "request.object")
            _field(request, "userInfo", dict, "request")
            group, version, plural = (
                _field(resource, name, str, "request.resource")
                for name in ("group", "version", "resource")
            )
            operation = _field(request, "operation", str, "request")
            if operation not in {"CREATE", "UPDATE"}:
                raise BadRequestError(400, "request.operation is neither CREATE nor UPDATE")
            namespace = _field(request, "namespace", str, "request")
            if not _NAMESPACE.fullmatch(namespace):
                raise BadRequestError(400, "request.namespace is not the name of a namespace")
            if namespace in SYSTEM_NAMESPACES:
                raise BadRequestError(403, "system namespaces are never injected")
        except BadRequestError as error:
            raise BadRequestError(error.code, str(error), uid=uid) from None
        return cls(
            uid=uid,
            resource=(group, version, plural),
            subresource=_text(request, "subResource"),
            operation=operation,
            namespace=namespace,
            name=_text(metadata, "name") or _text(metadata, "generateName"),
            dry_run=request.get("dryRun") is True,
            object=item,
        )

    @property
    def for_kopf(self) -> Object:
        """The review with a stub in place of the object.

        kopf copies all that it gets, and never forgets an object whose uid it has seen.
        """
        metadata = {"name": self.name, "namespace": self.namespace}
        stub = {name: _text(self.object, name) for name in ("apiVersion", "kind")}
        group, version, plural = self.resource
        return {
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": self.uid,
                "resource": {"group": group, "version": version, "resource": plural},
                "operation": self.operation,
                "userInfo": {},
                "object": stub | {"metadata": metadata},
                "dryRun": self.dry_run,
            },
        }

    def log_fields(self) -> Object:
        """The fields of the log line for this review."""
        return {
            "uid": self.uid,
            "resource": self.resource[2],
            "operation": self.operation,
            "namespace": self.namespace,
            "object": self.name,
            "dryrun": self.dry_run,
        } | ({"reason": self.reason, "rejection": self.rejection} if self.reason else {})

    def admit(self, admitted: Object) -> None:
        """Record the object to admit as a patch."""
        patch = build_json_patch(self.object, admitted)
        if patch:
            self.patch = base64.b64encode(_encode(patch)).decode()

    def drop_object(self) -> None:
        """Free the object's memory; the answer needs only the patch."""
        self.object = {}
        self.on_drop()

    def reject(self, message: str, reason: Reason) -> None:
        """Record a rejection that the user or the cluster's administrator can fix."""
        self.result, self.reason, self.rejection = "rejected", str(reason), message
        self.patch = ""

    def fail(self) -> str:
        """Record an internal error; returns its text, which discloses only where to look."""
        self.result, self.reason = "failed", str(Reason.INTERNAL_ERROR)
        self.patch = ""
        self.rejection = (
            "the injector failed on this object; "
            f"search its log for uid {self.uid} ({Reason.INTERNAL_ERROR})"
        )
        return self.rejection


# The review being answered. kopf passes only a part of it to its handlers.
current_review: ContextVar[Review] = ContextVar("current_review")


def build_rejection(uid: str, message: str, code: int) -> Object:
    """An AdmissionReview that rejects the object."""
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {
            "uid": uid,
            "allowed": False,
            "status": {"code": code, "message": message},
        },
    }


_to_json = json.JSONEncoder(ensure_ascii=False).encode


def _encode(value: Any) -> bytes:
    """JSON in UTF-8, which is a third of the size of escapes."""
    try:
        return _to_json(value).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return json.dumps(value).encode()


def _text(node: Object, name: str) -> str:
    """A string, shortened to the longest that is valid for a name; empty if it is not one."""
    value = node.get(name)
    return value[:_MAX_NAME] if isinstance(value, str) else ""


def _field(node: Any, name: str, kind: type, where: str) -> Any:
    value = node.get(name) if isinstance(node, dict) else None
    if not isinstance(value, kind):
        what = "a string" if kind is str else "an object"
        raise BadRequestError(400, f"{where} needs {name}, as {what}")
    return value
