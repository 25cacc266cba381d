"""Convert one value of an option, check its range, and say what is wrong with it."""

import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from groundtune.errors import suggestion

_EXPECTED = {bool: "true or false", float: "a number", int: "a whole number", str: "text"}
_EXAMPLES = {str: "{rbc: red blood cell}", float: "{cat: 0.5}"}
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Unfit(Exception):
    """A value does not have the type of its option. The message says what was expected."""


def convert(value: Any, hint: Any) -> Any:
    """Convert a value to a type: bool, int, float, str, list[X], dict[str, X], or a union of these.

    An optional list has an item: an empty one is refused where None has a meaning of its own.

    Raises:
        Unfit: The value has another type.
    """
    if hint == str | list[str] | None and isinstance(value, str):
        if not value.strip():
            raise Unfit("at least one item")
        return value  # class names, which are split where they are used
    if typing.get_origin(hint) is types.UnionType:
        return _convert_union(value, [kind for kind in typing.get_args(hint) if kind is not type(None)])
    if typing.get_origin(hint) is list:
        return _convert_list(value, typing.get_args(hint)[0])
    if typing.get_origin(hint) is dict:
        return _convert_pairs(value, typing.get_args(hint)[1])
    converted = _read(value, hint)
    if converted is None:
        raise Unfit(_EXPECTED[hint])
    return converted


def _convert_union(value: Any, kinds: Sequence[Any]) -> Any:
    """Convert to None, a mapping to the type that is one, and other values to the first type."""
    if value is None or (isinstance(value, str) and value in ("none", "auto") and str not in kinds):
        return None
    mappings = [kind for kind in kinds if isinstance(value, Mapping) and typing.get_origin(kind) is dict]
    lists = [kind for kind in kinds if typing.get_origin(kind) is list]
    converted = convert(value, (mappings or lists or kinds)[0])
    if converted == []:
        raise Unfit("at least one item")
    return converted


def _convert_list(value: Any, item: Any) -> list[Any]:
    if isinstance(value, str):  # "a, b" on the command line
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, Iterable) or isinstance(value, Mapping | Set | bytes):
        raise Unfit("a list")
    try:
        return [convert(part, item) for part in value]
    except Unfit as expected:
        raise Unfit(f"a list, each item {expected}") from None


def _convert_pairs(value: Any, kind: type) -> dict[str, Any]:
    """Convert a mapping, or a list of "name=other name" from the command line."""
    if isinstance(value, list) and all(isinstance(part, str) and "=" in part for part in value):
        parts = [part.partition("=") for part in value]
        value = {name.strip(): text.strip() for name, _, text in parts}
    if not isinstance(value, Mapping):
        as_list = isinstance(value, list)
        raise Unfit("NAME=PHRASE" if as_list else f"a mapping of names such as {_EXAMPLES[kind]}")
    pairs = {_read(name, str): _read(text, kind) for name, text in value.items()}
    if None in pairs or None in pairs.values():
        raise Unfit(f"{_EXPECTED[kind]} for every name, such as {_EXAMPLES[kind]}")
    return pairs


def _read(value: Any, kind: type) -> Any:
    """Return a value as bool, str, int or float, or None if it is not one."""
    if kind is bool:
        return value if isinstance(value, bool) else _TRUTH.get(str(value).lower())
    if isinstance(value, bool) or type(value).__name__ == "bool":  # NumPy's is no bool of Python
        return None
    if kind is str:
        return str(value) if isinstance(value, str | int | Path) and value != "" else None
    try:
        number = float(value)  # also "1e-4", and "2e1" as a whole number
    except (TypeError, ValueError, OverflowError):
        return None
    if kind is float:
        return number if math.isfinite(number) else None
    return int(number) if number.is_integer() and abs(number) < 2**53 else None


def value_problem(value: Any, known: Mapping[str, Any]) -> str:
    """Return the problem of a converted value (or list) out of range or not a choice, or "".

    `known` is the metadata of the field; empty allows all. None has no problem.
    """
    if not known or value is None:
        return ""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    for item in items:
        choices = known["choices"]
        if choices and item not in choices:
            hint = suggestion(str(item), choices)
            return f"expected {one_of(choices)}, got {shown(item)}.{hint}"
        if isinstance(item, bool) or not isinstance(item, int | float):
            continue
        too_low = item <= known["low"] if known["above"] else item < known["low"]
        too_high = item >= known["high"] if known["below"] else item > known["high"]
        if too_low or too_high:
            expected = ("of " if range_text(known).startswith("at") else "") + range_text(known)
            return f"expected {_EXPECTED[type(item)]} {expected}, got {plain(item)}."
    return ""


def one_of(choices: Sequence[str]) -> str:
    """Return "a, b or c"."""
    *first, last = choices
    return f"{', '.join(first)} or {last}" if first else last


def range_text(known: Mapping[str, Any]) -> str:
    """Return "between 0 and 1", "at least 1", "above 0 and at most 5" and the like, or ""."""
    low, high = known["low"], known["high"]
    if math.isfinite(low) and math.isfinite(high) and not known["above"] and not known["below"]:
        return f"between {plain(low)} and {plain(high)}"
    least = f"{'above' if known['above'] else 'at least'} {plain(low)}" if math.isfinite(low) else ""
    most = f"{'below' if known['below'] else 'at most'} {plain(high)}" if math.isfinite(high) else ""
    return " and ".join(filter(None, (least, most)))


def plain(value: Any) -> str:
    """Return a number without ".0"."""
    return str(value).removesuffix(".0")


def shown(value: Any) -> str:
    """Return a value as a message shows it: quoted, and at most 60 characters."""
    try:
        text = "nothing" if value is None else repr(value)
    except ValueError:  # Python refuses to print whole numbers of over 4300 digits
        text = "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
