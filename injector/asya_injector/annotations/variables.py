"""The format of environment variables in an annotation: `NAME=value, NAME="a,b"`."""

import json
import re

from asya_injector.annotations.formats import MAX_ANNOTATIONS, Format

# As the API server requires of a variable's name.
VARIABLE = r"[A-Za-z_.-][A-Za-z0-9_.-]*"
_QUOTED = r'"(?:[^"\\]|\\.)*+"'
# Possessive (`*+`): a text that does not match takes linear time.
_PAIR = re.compile(
    rf'\s*+(?P<name>{VARIABLE}+)\s*+=\s*+(?P<value>{_QUOTED}|[^",]*+)\s*+(?P<end>,|\Z)',
    re.DOTALL,
)
_RULE = 'NAME=value pairs separated by commas, each name once, such as A=1, B="a,b"'


def parse_variables(text: str) -> dict[str, str]:
    """The variables by name; raises ValueError with the rule.

    A value in double quotes is a JSON string, any other ends at the next comma.
    """
    variables: dict[str, str] = {}
    position, has_more = 0, bool(text.strip())
    if len(text) > MAX_ANNOTATIONS:
        raise ValueError(_RULE)
    while has_more:
        pair = _PAIR.match(text, position)
        if pair is None or pair["name"] in variables:
            raise ValueError(_RULE)
        variables[pair["name"]] = _unquote(pair["value"])
        position, has_more = pair.end(), pair["end"] == ","
    return variables


def is_literal(text: str) -> bool:
    """Whether a variable can have this value: text that the kubelet can hand to a process."""
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return "\0" not in text


def _unquote(value: str) -> str:
    text = value.strip()
    if text.startswith('"'):
        try:
            text = json.loads(text, strict=False)
        except ValueError:
            raise ValueError(_RULE) from None
    if not is_literal(text):
        raise ValueError(_RULE)
    return text


def _quote(value: str) -> str:
    is_plain = value == value.strip() and value.isprintable() and not set('",') & set(value)
    return value if is_plain else json.dumps(value, ensure_ascii=False)


def _canonicalize(text: str) -> str:
    return ", ".join(f"{name}={_quote(value)}" for name, value in parse_variables(text).items())


variables = Format(_canonicalize, {"pattern": r"^\s*$|="}, {"type": "string"})
