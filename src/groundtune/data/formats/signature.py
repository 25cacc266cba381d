"""The form of JSON files, by which readers recognize theirs. Large files are not read whole."""

import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

_SMALL = 2**22  # bytes; larger files are recognized by their ends
_END = 2**18  # bytes


class Signature(NamedTuple):
    """Form of a JSON file: "object", "array", "lines" (an object per line) or "" for others.

    `keys` are those of the object; `first` is the first element or line, None if it is no object.
    """

    form: str
    keys: frozenset[str] = frozenset()
    first: dict[str, Any] | None = None


def signature(path: Path) -> Signature:
    """Return the form of a JSON file; large files are not read whole."""
    try:
        if not path.is_file():  # a pipe would block
            return Signature("")
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_SMALL if size <= _SMALL else _END)
            tail = b""
            if size > _SMALL:
                file.seek(-_END, os.SEEK_END)
                tail = file.read()
    except OSError:
        return Signature("")
    text = head.decode("utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig", errors="replace")
    text = text.lstrip()
    first, end = _decode(text)
    if text.startswith("{"):
        lines = first is not None and text[end:].lstrip().startswith("{")
        if lines:
            return Signature("lines", frozenset(first or ()), first)
        keys = frozenset(first) if first is not None and not tail else _outer_keys(text, False)
        short = first and {key: value for key, value in first.items() if not isinstance(value, str)}
        return Signature("object", keys | _outer_keys(tail.decode(errors="replace"), True), short)
    if text.startswith("["):
        return Signature("array", first=_decode(text[1:].lstrip())[0])
    return Signature("")


def _decode(text: str) -> tuple[dict[str, Any] | None, int]:
    """Return the object that a text begins with, None if it is another value, and its end."""
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None, 0
    return (value if isinstance(value, dict) else None), end


def _outer_keys(text: str, from_end: bool) -> frozenset[str]:
    """Return the keys of the outermost object, of which the text is the beginning or the end."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[{}\[\]:]', text)
    opening, closing, keys, depth = "{[", "}]", set(), 0
    previous = ""
    if from_end:
        tokens, opening, closing = tokens[::-1], closing, opening
    for index, token in enumerate(tokens):
        following = previous if from_end else (tokens[index + 1] if index + 1 < len(tokens) else "")
        depth += (token in opening) - (token in closing)
        if depth == 1 and token.startswith('"') and following == ":":
            keys.add(token.strip('"'))
        previous = token
    return frozenset(keys)
