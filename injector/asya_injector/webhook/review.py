"""One question of the API server (AdmissionReview, v1) and what became of it. No I/O.

https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from asya_injector.errors import Reason
from asya_injector.kube_objects import Object


class BadRequestError(Exception):
    """What was sent cannot be answered as a review.

    The text says what is wrong, with nothing in it that was sent; `code` is HTTP's; `uid` is that
    of the review, if one can be made out.
    """

    def __init__(self, code: int, text: str, *, uid: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.uid = uid


@dataclass
class Review:
    """A question of the API server and, once it is answered, the answer.

    resource: group, version and plural name.
    object: the pod or workload as it would be stored; not to be changed.
    result: `changed`, `unchanged`, `refused` or `failed`; empty until it is known.
    reason: code of a refusal.
    refusal: its text.
    patch: JSON patch of what is changed.
    patience: seconds until there must be an answer.
    """

    uid: str
    resource: tuple[str, str, str]
    subresource: str
    operation: str
    namespace: str
    dry_run: bool
    object: Object
    user_info: Object
    result: str = ""
    reason: str = ""
    refusal: str = ""
    patch: list[Object] = field(default_factory=list)
    patience: float = 3.5

    @classmethod
    def read(cls, sent: Any) -> Review:
        """Check what is used of it; raises BadRequestError."""
        request = _field(sent, "request", dict, "the review")
        uid = _field(request, "uid", str, "request")
        if not uid:
            raise BadRequestError(400, "request.uid is empty")
        try:
            resource = _field(request, "resource", dict, "request")
            body = _field(request, "object", dict, "request")
            _field(body, "metadata", dict, "request.object")
            _field(request, "userInfo", dict, "request")
            group, version, plural = (
                _field(resource, name, str, "request.resource")
                for name in ("group", "version", "resource")
            )
            operation = _field(request, "operation", str, "request")
        except BadRequestError as error:
            raise BadRequestError(400, str(error), uid=uid) from None
        return cls(
            uid=uid,
            resource=(group, version, plural),
            subresource=str(request.get("subResource") or ""),
            operation=operation,
            namespace=str(request.get("namespace") or ""),
            dry_run=request.get("dryRun") is True,
            object=body,
            user_info=request["userInfo"],
        )

    @property
    def head(self) -> Object:
        """The review with what kopf needs of the object: it copies the whole of what it gets, and
        remembers an object that it is shown with a uid for ever.
        """
        metadata = {"name": self.name, "namespace": self.namespace}
        stub = {"apiVersion": self.object.get("apiVersion"), "kind": self.object.get("kind")}
        group, version, plural = self.resource
        return {
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": self.uid,
                "resource": {"group": group, "version": version, "resource": plural},
                "operation": self.operation,
                "userInfo": self.user_info,
                "object": stub | {"metadata": metadata},
                "dryRun": self.dry_run,
            },
        }

    @property
    def name(self) -> str:
        """What to call the object; a pod of a controller has no name of its own yet."""
        metadata = self.object["metadata"]
        return str(metadata.get("name") or metadata.get("generateName") or "")

    def said(self) -> Object:
        """What the log says of it."""
        return {
            "uid": self.uid,
            "resource": self.resource[2],
            "operation": self.operation,
            "namespace": self.namespace,
            "object": self.name,
            "dryrun": self.dry_run,
        } | ({"reason": self.reason, "refusal": self.refusal} if self.reason else {})

    def refuse(self, message: str, reason: Reason) -> None:
        """Set the answer to a refusal for a fault of the user's or the cluster's."""
        self.result, self.reason, self.refusal = "refused", str(reason), message

    def fail(self) -> str:
        """Set the answer to a refusal for a fault of ours; returns its text, which tells where to
        look and nothing of what is there.
        """
        self.result, self.reason = "failed", str(Reason.INTERNAL_ERROR)
        self.refusal = (
            "the injector failed on this object; its log says why, "
            f"under uid {self.uid} ({Reason.INTERNAL_ERROR})"
        )
        return self.refusal


# The review that is being answered, for kopf's handlers: kopf hands them but a part of it.
current_review: ContextVar[Review] = ContextVar("current_review")


def refused(uid: str, message: str, code: int) -> Object:
    """An AdmissionReview that refuses."""
    return {
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {
            "uid": uid,
            "allowed": False,
            "status": {"code": code, "message": message},
        },
    }


def _field(node: Any, name: str, kind: type, where: str) -> Any:
    value = node.get(name) if isinstance(node, dict) else None
    if not isinstance(value, kind):
        what = "text" if kind is str else "an object"
        raise BadRequestError(400, f"{where} has no {name} that is {what}")
    return value


# MERGED What changed, as a JSON patch (RFC 6902). Pure.

# Below this many steps, what differs is replaced whole. Mutating webhooks are called one after the
# other, each with what the one before made, so nobody else's change can be lost.
_DEEPEST = 4


def build_json_patch(before: Object, after: Object) -> list[Object]:
    """Operations that make the one of the other; none where they are equal.

    Field by field down to the fields of a container; what differs below is replaced whole. A list
    is gone through where it keeps its length, and else replaced. That is ten times cheaper than
    looking for the least difference.
    """
    found: list[Object] = []
    _compare(before, after, "", found)
    return found


def _compare(before: Any, after: Any, path: str, found: list[Object]) -> None:
    steps = path.count("/")
    if isinstance(before, dict) and isinstance(after, dict) and steps < _DEEPEST:
        for key, old in before.items():
            if key not in after:
                found.append({"op": "remove", "path": f"{path}/{_escaped(key)}"})
            elif old != after[key]:
                _compare(old, after[key], f"{path}/{_escaped(key)}", found)
        found.extend(
            {"op": "add", "path": f"{path}/{_escaped(key)}", "value": new}
            for key, new in after.items()
            if key not in before
        )
    elif (
        isinstance(before, list)
        and isinstance(after, list)
        and len(before) == len(after)
        and steps < _DEEPEST
    ):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            if old != new:
                _compare(old, new, f"{path}/{index}", found)
    else:
        found.append({"op": "replace", "path": path, "value": after})


def _escaped(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
