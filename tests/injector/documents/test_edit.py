"""An edited document keeps everything else: comments, order, quotes, line ends."""

import copy
from typing import Any

import pytest
from asya_injector.documents.document import edit_document, read_documents
from asya_injector.documents.edit import edit_yaml
from asya_injector.documents.nodes import Node, compose_yaml
from asya_injector.documents.render import render_block, render_flow
from hypothesis import given, settings
from hypothesis import strategies as st

DEPLOYMENT = """\
# who: the team of the model
apiVersion: apps/v1   # not v1
kind: Deployment
metadata:
    name: 'model'     # four columns here
    annotations: {b: "1", a: '2'}
spec:
  replicas: 0o1
  containers:
    # the model itself
    - name: model
      command: [ "gunicorn",  'app:server' ]
      env:
        # why X
        - name: X   # its reason
          value: "0444"

        - {name: Y, value: no}
      text: |
        one

        two
      # behind the model
    # in front of the proxy
    - name: proxy
      empty:
      tilde: ~
# the end
"""


def compose(text: str) -> Node:
    root = compose_yaml(text)
    assert root is not None
    return root


def read(text: str) -> Any:
    return compose(text).value


def edit(text: str, change: Any) -> str:
    """Edit a text to have a changed value, and check that it is read back."""
    before = read(text)
    after = copy.deepcopy(before)
    change(after)
    result = edit_yaml(text, compose(text), after)
    assert read(result) == after
    return result


def lines_added(before: str, after: str) -> list[str]:
    """The new lines; fails if an old one was removed or moved."""
    old, new = before.splitlines(), iter(after.splitlines())
    added = []
    for line in old:
        for candidate in new:
            if candidate == line:
                break
            added.append(candidate)
        else:
            raise AssertionError(f"{line!r} is gone")
    return added + list(new)


def model(tree: Any) -> Any:
    return tree["spec"]["containers"][0]


def test_a_variable_at_the_front_is_inserted_above_the_comment_of_the_first() -> None:
    result = edit(DEPLOYMENT, lambda tree: model(tree)["env"].insert(0, {"name": "Z"}))
    assert lines_added(DEPLOYMENT, result) == ["        - name: Z"]
    assert "      env:\n        - name: Z\n        # why X\n" in result


def test_a_new_key_is_inserted_after_the_last_one_and_before_its_comments() -> None:
    result = edit(DEPLOYMENT, lambda tree: model(tree).update(probe={"a": ["b"]}))
    assert "        two\n      probe:\n        a:\n          - b\n      # behind" in result
    assert lines_added(DEPLOYMENT, result) == ["      probe:", "        a:", "          - b"]


def test_a_list_on_one_line_stays_on_that_line() -> None:
    result = edit(DEPLOYMENT, lambda tree: model(tree)["command"].insert(0, "python3"))
    assert "command: [ python3, \"gunicorn\",  'app:server' ]\n" in result


def test_a_mapping_on_one_line_stays_on_that_line() -> None:
    def change(tree: Any) -> None:
        tree["metadata"]["annotations"]["c"] = '{"x": 1}'

    assert """annotations: {b: "1", a: '2', c: '{"x": 1}'}\n""" in edit(DEPLOYMENT, change)


CHANGES = {
    "value": lambda tree: tree["spec"].update(replicas=3),
    "type": lambda tree: tree["spec"].update(replicas={"a": "b"}),
    "empty-value": lambda tree: tree["spec"]["containers"][1].update(empty={"a": "b"}),
    "null-value": lambda tree: tree["spec"]["containers"][1].update(tilde=["x"]),
    "both": lambda tree: tree["spec"]["containers"][1].update(tilde=[], empty="", new=1),
    "item-behind": lambda tree: model(tree)["env"].append({"name": "Z", "value": "yes"}),
    "item-between": lambda tree: model(tree)["env"].insert(1, {"name": "Z", "value": "0444"}),
    "item-gone": lambda tree: model(tree)["env"].pop(0),
    "all-but-one-gone": lambda tree: tree["spec"]["containers"].pop(1),
    "key-gone": lambda tree: model(tree).pop("env"),
    "block-text-gone": lambda tree: model(tree).pop("text"),
    "first-key-behind-a-dash-gone": lambda tree: model(tree).pop("name"),
    "flow-key-gone": lambda tree: tree["metadata"]["annotations"].pop("b"),
    "flow-key-gone-last": lambda tree: tree["metadata"]["annotations"].pop("a"),
    "flow-items-gone": lambda tree: model(tree).update(command=["x"]),
    "in-flow-item": lambda tree: model(tree)["env"][1].update(value="later"),
    "block-text": lambda tree: model(tree).update(text="one\ntwo"),
    "list-emptied": lambda tree: model(tree).update(env=[]),
    "map-emptied": lambda tree: tree.update(metadata={}),
    "at-the-end": lambda tree: tree.update(status={"a": [{"b": "c"}]}),
    "inside-and-behind": lambda tree: (
        tree["spec"]["containers"][1].update(a=1),
        tree["spec"].update(b=2),
        tree.update(c=3),
    ),
    "replaced": lambda tree: tree["spec"].update(containers=[{"name": "other", "x": "\n\t"}]),
}


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_is_read_back_and_keeps_the_comments(change: Any, ends: str) -> None:
    text = DEPLOYMENT.replace("\n", ends)
    result = edit(text, change)
    assert "# who: the team of the model" in result
    assert result.endswith(f"# the end{ends}") or "# the end" in result
    assert ends == "\n" or "\n" not in result.replace("\r\n", "")


EXACT: dict[str, tuple[str, Any, str]] = {
    "first-of-a-line": ("a: [ x,  'y', z ]\n", ["y", "z"], "a: [ 'y', z ]\n"),
    "middle-of-a-line": ("a: [ x,  'y', z ]\n", ["x", "z"], "a: [ x,  z ]\n"),
    "last-of-a-line": ("a: [ x,  'y', z ]\n", ["x", "y"], "a: [ x,  'y' ]\n"),
    "two-of-a-line": ("a: [ x,  'y', z, u ]\n", ["y"], "a: [ 'y' ]\n"),
    "new-in-a-line": ("a: [ x,  'y' ]\n", ["x", "new", "m", "y"], "a: [ x, new, m,  'y' ]\n"),
    "new-last-in-a-line": ("a: [ x,  'y' ]\n", ["x", "y", "new"], "a: [ x,  'y', new ]\n"),
    "first-key-of-an-item": (
        "a:\n- b: 1 # b\n  name: m # m\n",
        [{"name": "m"}],
        "a:\n- name: m # m\n",
    ),
    "an-item-between": (
        "a:\n- 'x' # x\n# of z\n- z\n",
        ["x", "new", "z"],
        "a:\n- 'x' # x\n- new\n# of z\n- z\n",
    ),
    "an-item-gone": ("a:\n- 'x' # x\n- n # n\n- z\n", ["x", "z"], "a:\n- 'x' # x\n- z\n"),
    "key-above-a-comment": ("a:\n  b: 1\n  # of c\n  c: 2\n", {"c": 2}, "a:\n  # of c\n  c: 2\n"),
    "an-object-by-its-name": (
        "a:\n- metadata: {name: x} # x\n  v: 1\n- metadata: {name: y} # y\n  v: 2\n",
        [{"metadata": {"name": "x"}, "v": 3}, {"metadata": {"name": "new"}, "v": 2}],
        "a:\n- metadata: {name: x} # x\n  v: 3\n- metadata:\n    name: new\n  v: 2\n",
    ),
    "another-key": (
        "a:\n  # b\n  b: # of b\n    c: 1 # c\n",
        {"x": {"q": ["z"]}},
        "a:\n  # b\n  x: # of b\n    q:\n    - z # c\n",
    ),
    "another-key-on-a-line": ("a:\n  b: {c: 1} # c\n", {"x": {"q": 2}}, "a:\n  x: {q: 2} # c\n"),
    "another-key-in-a-list": (
        "a:\n- b:\n   c: 1\n- d",
        [{"x": {"q": {"z": 2}}}, "d"],
        "a:\n- x:\n   q:\n     z: 2\n- d",
    ),
    "nameless-items": (
        "a:\n- {v: 1} # 1\n- {v: 2} # 2\n",
        [{"v": 2}],
        "a:\n- {v: 2} # 2\n",
    ),
}


@pytest.mark.parametrize(("before", "now", "after"), EXACT.values(), ids=EXACT.keys())
def test_unchanged_parts_are_not_rewritten(before: str, now: Any, after: str) -> None:
    def change(tree: Any) -> None:
        tree["a"] = now

    assert edit(before, change) == after


def test_an_empty_document_is_not_changed() -> None:
    (document,) = read_documents("stdin", "# nothing\n", read_all=True)
    assert edit_document(document, None) is document
    assert edit_document(document, {"a": 1}) is None


def test_lines_can_be_added_to_a_file_without_a_final_newline() -> None:
    def change(tree: Any) -> None:
        tree["c"] = {"d": "e"}

    assert edit("a: b", change) == "a: b\nc:\n  d: e"


def test_new_lists_are_indented_like_those_of_the_document() -> None:
    def change(tree: Any) -> None:
        tree["new"] = [{"a": [1]}]

    assert edit("old:\n- x\n", change) == "old:\n- x\nnew:\n- a:\n  - 1\n"
    assert edit("old:\n  - x\n", change) == "old:\n  - x\nnew:\n  - a:\n      - 1\n"


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(
    ["yes", "No", "on", "null", "~", "0666", "1e3", "12e0034567", "0x1F", "1:20", "-", "- a", ": ",
     "a: b", "#", " a", "a ", "2024-01-01", "=", "<<", "'", '"', "`", "@x", "%", "!t", "&a", "*a",
     "|", ">", "a\nb", "a\n", "\na", "a\n\n", "{", "[", "\x85", "\u2028", "\ufeff", "\x7f", "é",
     "😀"]
)  # fmt: skip
NAMES = st.sampled_from(["a", "b", "name", "on", "y", "0", "a b", "asya.sh/handler", "é"])
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)
MAPPINGS = st.dictionaries(NAMES, TREES, min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(MAPPINGS, st.sampled_from([0, 2]))
def test_every_value_is_read_back_as_it_was_written(value: Any, dash: int) -> None:
    assert read(render_block(value, dash_offset=dash)) == value
    assert read(f"a: {render_flow(value)}\n") == {"a": value}


@settings(max_examples=40, deadline=None)
@given(MAPPINGS, MAPPINGS, st.sampled_from([0, 2]), st.booleans())
def test_any_value_can_be_changed_to_any_other(
    before: Any, after: Any, dash: int, in_flow: bool
) -> None:
    text = render_flow(before) + "\n" if in_flow else render_block(before, dash_offset=dash)
    assert read(edit_yaml(text, compose(text), after)) == after
