"""The YAML at the head of a README, edited as text: what people wrote there stays byte for byte.

In: a README, and keys with values. Out: its parts, its values, or the same YAML with those keys set. YAML 1.1, which
Python's reader speaks, takes `no` for a boolean, `1:30:00` and `010` for other numbers and `1.10` for 1.1; the Hub
speaks 1.2. So values are read here as they are written, and only those that both read alike become numbers or booleans.
Knows no cards: which key is whose is the caller's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

_HEAD = re.compile(
    r"\A\ufeff?\s*---[ \t]*(?:\r\n|\r|\n)(?:(?P<yaml>.*?)(?:\r\n|\r|\n))??---[ \t]*(?:\r\n|\r|\n|\Z)",
    re.DOTALL,
)
_LINE_END = re.compile(r"\r\n|[\r\n\x85\u2028\u2029]|\Z")


class _AsWritten(yaml.SafeLoader):
    """Reads booleans, whole numbers and fractions where they are plainly that; any other plain word is a string."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - as in the parent


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"-?(?:0|[1-9][0-9]{0,17})", list("-0123456789")),
    ("float", r"-?(?:0|[1-9][0-9]{0,8})\.(?:0|[0-9]{0,5}[1-9])", list("-0123456789")),
    ("merge", r"<<", ["<"]),
):
    _AsWritten.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


class _Plain(yaml.SafeDumper):
    """Writes equal values twice instead of pointing at the first."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def split(text: str | None) -> tuple[str, str]:
    """The YAML and the body of a README; the YAML is empty where there is none."""
    match = _HEAD.match(text or "")
    if match is None or text is None:
        return "", text or ""
    return match["yaml"] or "", text[match.end() :]


def as_written(text: str) -> dict[str, Any]:
    """The values of some YAML as they are written: `no` is "no", `1.10` is "1.10", a date is a string.

    Raises:
        ValueError: It is not YAML, or not a mapping.
    """
    return _mapping(text, _AsWritten)


def as_python(text: str) -> dict[str, Any]:
    """The values of some YAML as `datasets` and `huggingface_hub` read them.

    Raises:
        ValueError: It is not YAML, or not a mapping.
    """
    return _mapping(text, yaml.SafeLoader)


def edited(text: str, new: Mapping[str, Any], *, newline: str = "\n") -> str:
    """Sets keys in some YAML, in their places or at the end, and leaves all other bytes alone.

    A key that has its value already stays as it is written. Of a key that is set its own comments go with it.

    Raises:
        ValueError: It is not YAML, or not a mapping; or another key points into one that would be set.
    """
    # With the line end that stands before the closing `---`: a block at the end may keep it.
    written, python = as_written(text + newline), as_python(text + newline)
    new = {
        key: value for key, value in new.items() if not (key in written and value in (written[key], python.get(key)))
    }
    if not new:
        return text
    root = yaml.compose(text, Loader=_AsWritten)
    if isinstance(root, yaml.MappingNode) and root.flow_style:
        text = _as_block(text, root, newline)
        root = yaml.compose(text, Loader=_AsWritten)
    nodes = root.value if isinstance(root, yaml.MappingNode) else []
    indent = " " * root.start_mark.column if nodes else ""
    left = dict(new)
    parts, done = [], 0
    for key, value in nodes:
        if key.value not in new:
            continue
        parts.append(text[done : key.start_mark.index - key.start_mark.column])
        if key.value in left:  # and not a second time, where the key stands twice
            parts.append(_dumped({key.value: left.pop(key.value)}, indent, newline))
        end = _LINE_END.search(text, _end(value))
        assert end is not None
        done = end.end()
        if done == end.start():  # the last line of all has no end of its own
            parts[-1] = parts[-1].removesuffix(newline)
    parts.append(text[done:])
    edit = "".join(parts)
    if left:
        edit += (newline if edit.strip() else "") + _dumped(left, indent, newline).removesuffix(newline)
    kept = {key: value for key, value in written.items() if key not in new}
    try:
        same = {key: value for key, value in as_written(edit + newline).items() if key not in new} == kept
    except ValueError:
        same = False
    if not same:
        raise ValueError(
            f"the README's front matter has keys that point into {', '.join(f'`{key}`' for key in new)}, which must "
            "change; write their values out by hand first"
        )
    return edit


def _mapping(text: str, loader: Any) -> dict[str, Any]:
    try:
        data = yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the README's front matter is not YAML ({reason}); correct it by hand first") from error
    if data is not None and not isinstance(data, dict):
        raise ValueError(
            f"the README's front matter is a {type(data).__name__}, not `key: value` lines; correct it by hand first"
        )
    return data or {}


def _dumped(values: Mapping[str, Any], indent: str, newline: str) -> str:
    lines = yaml.dump(dict(values), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120).splitlines()
    return "".join(f"{indent}{line}{newline}" for line in lines)


def _end(node: Any) -> int:
    """Where a node's text ends: a block's own mark lies behind the comments that follow, so its last child's counts."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        index: int = node.end_mark.index
        return max(node.start_mark.index, index - 1)
    end: int = node.end_mark.index
    return end


def _as_block(text: str, root: Any, newline: str) -> str:
    """`{a: 1, b: [2]}` as one line a key."""

    def words(node: Any) -> str:
        return f"{newline} ".join(text[node.start_mark.index : node.end_mark.index].splitlines())

    return newline.join(f"{words(key)}: {words(value)}" for key, value in root.value)
