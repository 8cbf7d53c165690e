"""The README's table of values comes from the comments in values.yaml."""

import yaml

from tests.chart.charts import CHART
from tests.generated.values_table import described, table


def test_every_value_has_a_comment_of_whole_sentences() -> None:
    text = (CHART / "values.yaml").read_text()
    comments = dict(described(text))
    open_maps = ("injector.resources", "injector.podSecurityContext", "injector.securityContext")

    def leaves(tree: object, path: str) -> list[str]:
        if isinstance(tree, dict) and tree and path not in open_maps:
            return [leaf for key in tree for leaf in leaves(tree[key], f"{path}.{key}".strip("."))]
        return [path]

    assert [leaf for leaf in leaves(yaml.safe_load(text), "") if leaf not in comments] == []
    assert [path for path, comment in comments.items() if not comment.endswith(".")] == []


def test_comments_become_the_rows_of_a_table() -> None:
    values = (
        "a:\n  # One,\n  # or two.\n  b: 1\n  c: 2\n# A | b.\nd-e: {}\n\n# Nothing's.\n\nf: x\n"
        "g:\n  # BEGIN generated: gs (make sync)\n  # G.\n  h: 1\n  # END generated\n  i: 2\n"
    )
    assert table(values) == (
        "| value | default | meaning |\n"
        "| --- | --- | --- |\n"
        "| `a.b` | `1` | One, or two. |\n"
        "| `d-e` | `{}` | A \\| b. |\n"
        "| `g.h` | `1` | G. |\n"
    )
