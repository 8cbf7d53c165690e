"""The README's table comes from the comments in values.yaml."""

import pytest
import yaml

from tests.chart.charts import CHART
from tests.chart.values_table import BEGIN, END, described, table, updated


def test_the_readme_has_the_table_as_it_is_now() -> None:
    readme = (CHART / "README.md").read_text()
    assert updated(readme, (CHART / "values.yaml").read_text()) == readme, "make chart-render"


def test_every_value_has_a_sentence() -> None:
    text = (CHART / "values.yaml").read_text()
    said = dict(described(text))
    open_maps = ("injector.resources", "injector.podSecurityContext", "injector.securityContext")

    def leaves(tree: object, path: str) -> list[str]:
        if isinstance(tree, dict) and tree and path not in open_maps:
            return [leaf for key in tree for leaf in leaves(tree[key], f"{path}.{key}".strip("."))]
        return [path]

    assert [leaf for leaf in leaves(yaml.safe_load(text), "") if leaf not in said] == []
    assert [path for path, words in said.items() if not words.endswith(".")] == []


def test_comments_become_the_rows_of_a_table() -> None:
    values = (
        "a:\n  # One,\n  # or two.\n  b: 1\n  c: 2\n# A | b.\nd-e: {}\n\n# Nothing's.\n\nf: x\n"
    )
    assert table(values) == (
        "| value | default | meaning |\n"
        "| --- | --- | --- |\n"
        "| `a.b` | `1` | One, or two. |\n"
        "| `d-e` | `{}` | A \\| b. |\n"
    )


def test_the_rest_of_the_readme_stays() -> None:
    values = "# What.\na: 1\n"
    readme = f"before\n{BEGIN}old{END}after\n"
    assert updated(readme, values) == f"before\n{BEGIN}\n{table(values)}\n{END}after\n"


@pytest.mark.parametrize("readme", ["", BEGIN, END, END + BEGIN])
def test_a_readme_without_a_place_for_it_is_refused(readme: str) -> None:
    with pytest.raises(ValueError, match="no place for the table"):
        updated(readme, "")
