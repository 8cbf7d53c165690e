"""The sidecar that an earlier injection has added: recognised, replaced and removed."""

import copy
import json
from typing import Any

import pytest
from asya_injector.annotations.settings import ClusterDefaults
from asya_injector.errors import InjectionError
from asya_injector.mutation.inject import inject
from asya_injector.mutation.uninject import uninject

from tests.injector.mutation.test_sidecar import (
    BARE,
    CA,
    CONTAINER,
    NONE,
    VALUE,
    WITH_SIDECAR,
    defaults,
    injected,
    pod,
)

Object = dict[str, Any]

NEWER: Object = {**VALUE, "container": {**CONTAINER, "image": "queue:2"}}
RENAMED: Object = {**VALUE, "container": {**CONTAINER, "name": "queue"}}
ORDINARY: Object = {**VALUE, "native": False}
OTHER_VOLUME: Object = {**VALUE, "volumes": [{"name": "ca", "emptyDir": {}}]}
FEWER = BARE | {"annotations": VALUE["annotations"]}


def store(given: Object) -> Object:
    """The pod as the API server stores and returns it, with what other webhooks add."""
    given = copy.deepcopy(given)
    spec = given["spec"]
    token = {"name": "kube-api-access", "mountPath": "/var/run/secrets/token", "readOnly": True}
    for container in spec.get("initContainers", []) + spec["containers"]:
        container |= {
            "imagePullPolicy": "IfNotPresent",
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
        }
        container["env"] = [{"name": "MESH", "value": "1"}, *container.get("env", [])]
        container["volumeMounts"] = [*container.get("volumeMounts", []), token]
        for variable in container["env"]:
            if variable.get("value") == "":
                del variable["value"]
        for port in container.get("ports", []):
            port["protocol"] = "TCP"
        if "resources" in container:
            container["resources"] = {"requests": {"cpu": "1"}}
    for volume in spec["volumes"]:
        if "secret" in volume:
            volume["secret"]["defaultMode"] = 420
    spec["volumes"].append({"name": "kube-api-access", "projected": {}})
    return given


ORIGINAL = pod({"name": "proxy"}, annotations={"asya.sh/sidecar-env": "EMPTY="},
               initContainers=[{"name": "setup"}])  # fmt: skip


@pytest.mark.parametrize("value", [VALUE, ORDINARY])
def test_is_removed_from_a_pod_that_the_api_server_has_completed(value: Object) -> None:
    running = store(injected(ORIGINAL, defaults(value)).pod)
    restored = uninject(running)
    names = [each["name"] for field in ("initContainers", "containers")
             for each in restored["spec"][field]]  # fmt: skip
    assert names == ["setup", "model", "proxy"]
    assert [each["name"] for each in restored["spec"]["volumes"]] == ["kube-api-access"]
    assert "imagePullSecrets" not in restored["spec"]


def divide(divisor: str) -> Object:
    source = {"resource": "limits.memory", "divisor": divisor}
    return {"env": [{"name": "MEMORY", "valueFrom": {"resourceFieldRef": source}}]}


def claim(**fields: Any) -> Object:
    return {"persistentVolumeClaim": {"claimName": "c", **fields}}


def request(storage: str) -> Object:
    template = {"spec": {"resources": {"requests": {"storage": storage}}}}
    return {"ephemeral": {"volumeClaimTemplate": template}}


@pytest.mark.parametrize(
    ("container", "stored_container", "source", "stored_source"),
    [
        pytest.param({}, {}, {"emptyDir": {"sizeLimit": "1024Mi"}},
                     {"emptyDir": {"sizeLimit": "1Gi"}}, id="size-limit"),
        pytest.param({}, {}, {"emptyDir": {"sizeLimit": 1073741824}},
                     {"emptyDir": {"sizeLimit": "1Gi"}}, id="size-limit-in-bytes"),
        pytest.param({}, {}, request("1024Mi"), request("1Gi"), id="size-of-a-claim"),
        pytest.param({}, {}, claim(readOnly=False), claim(), id="field-without-effect"),
        pytest.param({}, {}, {}, {"emptyDir": {}}, id="volume-without-a-source"),
        pytest.param(divide("1024Ki"), divide("1Mi"), claim(), claim(), id="divisor"),
        pytest.param({"resources": {"limits": {"cpu": 0.5}}}, {"resources": {"limits":
                     {"cpu": "500m"}}}, claim(), claim(), id="resources"),
    ],
)  # fmt: skip
def test_is_recognised_in_the_form_that_the_api_server_stores(
    container: Object, stored_container: Object, source: Object, stored_source: Object
) -> None:
    value = {**VALUE, "container": CONTAINER | container, "volumes": [CA, {"name": "v"} | source]}
    settings = defaults(value)
    stored = injected(pod(), settings).pod
    stored["spec"]["initContainers"][0] |= {
        field: [*stored["spec"]["initContainers"][0]["env"][:-1], *form] if field == "env" else form
        for field, form in stored_container.items()
    }
    stored["spec"]["volumes"][1] = {"name": "v"} | stored_source
    assert uninject(stored) == pod()
    stored["metadata"]["annotations"]["asya.sh/prefetch"] = "2"
    copied = inject(stored, settings)
    assert copied is not None
    assert copied.pod == injected(pod(annotations={"asya.sh/prefetch": "2"}), settings).pod
    own = injected(pod(volumes=[{"name": "v"} | stored_source]), settings).pod
    assert [each["name"] for each in own["spec"]["volumes"]].count("v") == 1


@pytest.mark.parametrize("later", [NEWER, RENAMED, ORDINARY, OTHER_VOLUME, FEWER, None])
@pytest.mark.parametrize("earlier", [VALUE, ORDINARY, None])
def test_a_copied_pod_gets_the_template_of_today(
    earlier: Object | None, later: Object | None
) -> None:
    given = pod({"name": "proxy"})
    if earlier is None or later is None:
        given["metadata"]["annotations"].pop("asya.sh/queue")
    queue = {"asya.sh/queue": "orders"}
    settings = [NONE if value is None else defaults(value) for value in (earlier, later)]

    def asking(item: Object, value: Object | None) -> Object:
        annotations = dict(item["metadata"]["annotations"])
        annotations.pop("asya.sh/queue", None)
        annotations |= queue if value else {}
        return {**item, "metadata": {**item["metadata"], "annotations": annotations}}

    copied = injected(asking(given, earlier), settings[0]).pod
    again = inject(asking(copied, later), settings[1])
    expected = inject(asking(given, later), settings[1])
    assert again is not None
    assert expected is not None
    assert again.pod == expected.pod


def test_a_copied_pod_gets_its_new_parameters() -> None:
    copied = injected(pod()).pod
    copied["metadata"]["annotations"]["asya.sh/queue"] = "other"
    assert injected_env(copied)["QUEUE"] == "other"


def injected_env(given: Object, settings: ClusterDefaults = WITH_SIDECAR) -> dict[str, Any]:
    result = inject(given, settings)
    assert result is not None
    (sidecar,) = result.pod["spec"]["initContainers"]
    return {each["name"]: each.get("value") for each in sidecar["env"]}


def test_a_second_call_keeps_what_another_webhook_did_to_it() -> None:
    changed = store(injected(pod()).pod)
    changed["spec"]["initContainers"][0]["image"] = "mirror.example.com/queue:1"
    result = inject(changed, WITH_SIDECAR)
    assert result is not None
    assert result.pod == changed
    assert result.warnings == ()


def test_a_second_call_adds_it_again_if_it_is_gone() -> None:
    first = injected(pod()).pod
    sidecars = first["spec"].pop("initContainers")
    result = inject(first, WITH_SIDECAR)
    assert result is not None
    assert result.pod["spec"]["initContainers"] == sidecars
    assert uninject(result.pod) == pod()


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param({"image": "mine:1"}, id="image"),
        pytest.param({"args": ["--verbose"]}, id="args"),
        pytest.param({"env": [{"name": "QUEUE", "value": "mine"}]}, id="env"),
        pytest.param({"ports": []}, id="ports"),
    ],
)
def test_one_that_somebody_has_edited_is_kept_with_what_it_needs(edit: Object) -> None:
    value = {**VALUE, "container": {**CONTAINER, "args": ["--quiet"]}}
    first = injected(pod(), defaults(value)).pod
    first["spec"]["initContainers"][0] |= edit
    restored = uninject(first)["spec"]
    kept: Object = restored["initContainers"][0]
    assert {name: kept[name] for name in edit} == edit
    # Without the socket, whose volume is gone.
    assert kept["volumeMounts"] == CONTAINER["volumeMounts"]
    assert restored["volumes"] == [CA]
    assert restored["imagePullSecrets"] == [{"name": "pull"}]


def test_a_volume_that_another_container_mounts_too_is_kept() -> None:
    first = injected(pod({"name": "proxy"})).pod
    first["spec"]["containers"][1]["volumeMounts"] = [{"name": "ca", "mountPath": "/ca"}]
    restored = uninject(first)["spec"]
    assert restored["volumes"] == [CA]
    assert "initContainers" not in restored


def test_a_volume_that_somebody_has_edited_is_kept() -> None:
    first = injected(pod(), defaults(OTHER_VOLUME)).pod
    mine = {"name": "ca", "persistentVolumeClaim": {"claimName": "mine"}}
    first["spec"]["volumes"][0] = mine
    assert uninject(first)["spec"]["volumes"] == [mine]


RECORD: Object = {"template": "0", "container": {"name": "asya-sidecar"}}


@pytest.mark.parametrize(
    "wrong",
    [
        {"template": 1},
        {"container": "asya-sidecar"},
        {"container": {}},
        {"volumes": {}},
        {"volumes": ["ca"]},
        {"imagePullSecrets": [{"name": "pull"}]},
        {"template": None},
    ],
)
def test_rejects_a_malformed_record(wrong: Object) -> None:
    first = injected(pod()).pod
    annotations = first["metadata"]["annotations"]
    record = json.loads(annotations["asya.sh/injected"])
    annotations["asya.sh/injected"] = json.dumps(record | {"sidecar": RECORD | wrong})
    with pytest.raises(InjectionError, match=r"^asya.sh/injected: was not written by the injector"):
        uninject(first)


def test_a_record_with_much_in_it_takes_little_time() -> None:
    """A lists of mappings is read once, whatever the record says about its items."""
    first = injected(pod()).pod
    annotations = first["metadata"]["annotations"]
    record = json.loads(annotations["asya.sh/injected"])
    item = {f"k{number}": "" for number in range(2000)}
    record["sidecar"] = RECORD | {
        "container": {"name": "asya-sidecar", "env": [{"name": "x", **item}]}
    }
    annotations["asya.sh/injected"] = json.dumps(record)
    env = [{"name": f"A{number}"} for number in range(40_000)]
    first["spec"]["initContainers"][0]["env"] = env
    assert uninject(first)["spec"]["initContainers"][0]["env"] == env
