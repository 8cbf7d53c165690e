"""The runtime's copy in a namespace: there before the pod, kept, never of another's making."""

from concurrent.futures import ThreadPoolExecutor

from e2e.harness import Cluster, Object, bare_pod, until

ECHO = {"asya.sh/handler": "handlers.echo"}
NOWHERE = {"example.com/no": "no"}  # no node has it: the pod is only admitted


def hash_of(pod: Object) -> str:
    label: str = pod["metadata"]["labels"]["asya.sh/runtime-hash"]
    return label


def test_fifty_pods_at_once_in_a_new_namespace_share_one_copy(
    cluster: Cluster, namespace: str
) -> None:
    def create(number: int) -> Object:
        pod = bare_pod(f"p{number}", cluster.model_image, ECHO)
        pod["spec"]["nodeSelector"] = NOWHERE
        made = cluster.core.create_namespaced_pod(namespace, pod)
        mounted = {v.name: v.config_map.name for v in made.spec.volumes if v.config_map}
        return {"hash": made.metadata.labels["asya.sh/runtime-hash"], "mounted": mounted}

    with ThreadPoolExecutor(max_workers=25) as pool:
        made = list(pool.map(create, range(50)))
    (copy,) = cluster.copies(namespace)
    name = copy["metadata"]["name"]
    expected = {"hash": name.rpartition("-")[2], "mounted": {"asya-runtime": name}}
    assert made == [expected] * 50


def test_where_no_config_map_may_be_made_the_pod_is_refused_with_the_apis_words(
    cluster: Cluster, namespace: str
) -> None:
    hard = {"count/configmaps": "1"}  # the cluster's own certificate is one
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}}
    cluster.create({**quota, "spec": {"hard": hard}}, "-n", namespace)

    def counted() -> bool:
        status = cluster.get("-n", namespace, "resourcequota/few").get("status", {})
        return bool(status.get("used") == hard)

    until("the quota to be counted", counted)
    pod = bare_pod("model", cluster.model_image, ECHO)
    done = cluster.create(pod, "-n", namespace, check=False)
    assert done.returncode == 1
    assert "exceeded quota: few" in done.stderr
    assert done.stderr.rstrip().endswith("(RuntimeConfigMapUnavailable)")
    assert cluster.get("-n", namespace, "pods")["items"] == []
    # It asks again at once, not when what was remembered is forgotten.
    cluster.kubectl("-n", namespace, "delete", "resourcequota/few")
    until(
        "the quota to be forgotten",
        lambda: cluster.create(pod, "-n", namespace, check=False).returncode == 0,
        seconds=30,
    )


def test_a_namespace_on_its_way_out_takes_no_pods_and_makes_no_noise(
    cluster: Cluster, namespace: str
) -> None:
    held = {"name": "held", "finalizers": ["example.com/hold"]}
    cluster.create({"apiVersion": "v1", "kind": "ConfigMap", "metadata": held}, "-n", namespace)
    cluster.kubectl("delete", "namespace", namespace, "--wait=false")
    try:
        pod = bare_pod("model", cluster.model_image, ECHO)
        done = cluster.create(pod, "-n", namespace, check=False)
        assert "because it is being terminated" in done.stderr
        assert cluster.copies(namespace) == []
    finally:
        free = '{"metadata": {"finalizers": null}}'
        cluster.kubectl("-n", namespace, "patch", "configmap/held", "-p", free)
