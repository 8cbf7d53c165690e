"""Pods that are started at once: the table and the goals of what was measured."""

from asya_injector.runtime_image import CONFIG_MAP, IMAGE

from bench.starts import ADMITTED, CPU, READY, Starts


def test_the_image_is_compared_with_the_configmap_by_all_rounds() -> None:
    starts = Starts()
    for count in (300, 100):
        for what in (ADMITTED, READY, CPU):
            starts.figures[count, CONFIG_MAP, what] += [10.0, 30.0]
            starts.figures[count, IMAGE, what] += [10.0, count / 10]
    table = [
        ["pods at once", "", "configMap", "image", "ratio"],
        *(
            [count, f"{what}, each round", "10.0, 30.0", *cells]
            for count, cells in (("100", ["10.0, 10.0", "×0.50"]), ("300", ["10.0, 30.0", "×1.00"]))
            for what in (
                "time until admitted (s)",
                "time until ready (s)",
                "CPU of the node, per pod (ms)",
            )
        ),
    ]
    assert starts.table().rows == table
    goals = [goal.row() for goal in starts.goals()]
    assert goals == [
        [f"{what}, 300 pods at once, image × configMap ≤ 1.05", "1", "met"] for what in (READY, CPU)
    ]
