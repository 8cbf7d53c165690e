"""The demo prints only the relevant changes of a pod."""

import copy
from typing import Any

from examples.pod_diff import diff_pods, select_written

TOKEN = "kube-api-access-x2x4v"
POD: dict[str, Any] = {
    "metadata": {"name": "web-1", "uid": "1", "labels": {"app": "web", "pod-template-hash": "a"}},
    "spec": {
        "containers": [
            {
                "command": ["app"],
                "image": "web:1",
                "imagePullPolicy": "IfNotPresent",
                "name": "web",
                "resources": {},
                "volumeMounts": [{"mountPath": "/var/run/secrets", "name": TOKEN}],
            }
        ],
        "nodeName": "node-1",
        "volumes": [{"name": TOKEN, "projected": {"sources": []}}],
    },
    "status": {"phase": "Running"},
}


def test_defaults_and_status_are_left_out() -> None:
    assert select_written(POD) == {
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "command": ["app"], "image": "web:1"}]},
    }


def test_pods_of_the_same_template_have_no_differences() -> None:
    other = copy.deepcopy(POD)
    other["metadata"].update(name="web-2", uid="2")
    other["metadata"]["labels"]["pod-template-hash"] = "b"
    other["spec"]["nodeName"] = "node-2"
    other["spec"]["volumes"][0]["name"] = "kube-api-access-other"
    assert diff_pods(POD, other) == []


def test_a_change_is_printed_with_context() -> None:
    other = copy.deepcopy(POD)
    other["spec"]["containers"][0]["command"] = ["wrapper", "app"]
    other["spec"]["volumes"].append({"emptyDir": {}, "name": "socket"})
    assert diff_pods(POD, other) == [
        "--- before",
        "+++ after",
        "@@ -5,4 +5,7 @@",
        "   containers:",
        "   - name: web",
        "-    command: [app]",
        "+    command: [wrapper, app]",
        "     image: web:1",
        "+  volumes:",
        "+  - name: socket",
        "+    emptyDir: {}",
    ]
