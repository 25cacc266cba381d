"""Dataclasses as options: read from mappings (YAML, command line, keyword arguments), converted, checked, explained.

A field made by `option` carries its line of help and its range. `resolve` merges layers of values into an instance, and
reports every mistake of every layer in one error, each with its place, what was expected and the nearest known name.

Deviation from YAML: `lr: 1e-4` is a string in YAML 1.1, where the exponent needs a dot; it is read as the number.
"""

import dataclasses
import difflib
import math
import operator
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from groundtune.errors import ConfigError

COMMAND_LINE = "command line"

Layer = tuple[str, Mapping[str, Any]]
"""What a source of values is called in messages, and its values."""

_T = TypeVar("_T")
_EXPECTED = {bool: "true or false", float: "a number", int: "a whole number", str: "a text"}
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def option(
    default: Any = dataclasses.MISSING,
    help: str = "",
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: bool = False,
    below: bool = False,
    choices: Sequence[str] = (),
    positional: bool = False,
    flag: bool | str = True,
    repeat: bool = False,
    group: str = "",
) -> Any:
    """A dataclass field with what is known about it.

    Args:
        default: its value where nobody gives one; a list or dict is copied; none makes the option required.
        help: one line, with the unit.
        low: smallest number; excluded if `above`.
        high: largest number; excluded if `below`.
        choices: the only strings that it may be; none allows any.
        positional: whether the command line takes it by its place.
        flag: whether the command line has it at all; or what it is called there, such as "--rename".
        repeat: whether a list is given by one use of the option for each of its texts, which may have commas.
        group: heading in the help text; the general one where empty.
    """
    metadata = {name: value for name, value in locals().items() if name != "default"}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def leaf_fields(options: type) -> dict[str, dataclasses.Field[Any]]:
    """An options class's fields by name; those of a nested one under dotted names ("optimizer.lr")."""
    found: dict[str, dataclasses.Field[Any]] = {}
    for field in dataclasses.fields(options):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            found |= {f"{field.name}.{name}": leaf for name, leaf in leaf_fields(field.type).items()}
        else:
            found[field.name] = field
    return found


def resolve(options: type[_T], layers: Sequence[Layer]) -> _T:
    """Merge layers of values, the later ones stronger, into an instance.

    Raises:
        ConfigError: unknown names, values of a wrong type or out of range, missing ones; all of them are listed.
    """
    values, problems = _merge(options, layers)
    fail(problems)
    return _build(options, values)


def check(options: Any) -> list[str]:
    """What is out of range in an instance that was put together by hand."""
    problems = []
    for name, field in leaf_fields(type(options)).items():
        problem = _range_problem(field, operator.attrgetter(name)(options))
        if problem:
            problems.append(f"{name}: {problem}")
    return problems


def fail(problems: Sequence[str]) -> None:
    """Raise a ConfigError with all problems; nothing where there are none."""
    if len(problems) > 1:
        raise ConfigError("\n  ".join([f"{len(problems)} problems with the options:", *problems]))
    if problems:
        raise ConfigError(problems[0])


def suggestion(name: str, known: Iterable[str]) -> str:
    """ " Did you mean X?" where one of the known names is near, otherwise ""."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of options; an empty one is {}.

    Raises:
        ConfigError: there is no such file, it is not YAML, or not a mapping of options.
    """
    from groundtune.plain_yaml import parse_yaml

    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration {path}: {error.strerror}. Expected a YAML file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"Cannot read the configuration {path}: it is not UTF-8 text.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML{error}.") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path} must be a mapping of options such as `epochs: 20`, found {_shown(content)}.")
    return content or {}


def flag_of(name: str, field: dataclasses.Field[Any]) -> str:
    """What a command line calls an option: optimizer.weight_decay is --weight-decay, unless its field says otherwise."""
    own = field.metadata.get("flag")
    if field.metadata.get("positional"):
        return name
    return own if isinstance(own, str) else "--" + name.rpartition(".")[2].replace("_", "-")


def _merge(options: type, layers: Sequence[Layer]) -> tuple[dict[str, Any], list[str]]:
    """Converted values by dotted name, and what is wrong with the layers."""
    leaves = leaf_fields(options)
    values: dict[str, Any] = {}
    failed: set[str] = set()
    problems: list[str] = []
    for where, layer in layers:
        for name, value in _flatten(options, layer):
            place = flag_of(name, leaves[name]) if where == COMMAND_LINE and name in leaves else f"{where}: {name}"
            if name not in leaves:
                problems.append(_unknown(name, place, leaves))
                continue
            try:
                values[name] = _convert(value, leaves[name].type, place)
                problem = _range_problem(leaves[name], values[name])
            except ConfigError as error:  # of an item of a list of options
                problem, place = str(error), ""
            except _Unfit as expected:
                problem = f"expected {expected}, got {_shown(value)}."
            if problem:
                failed.add(name)
                problems.append(f"{place}: {problem}" if place else problem)
    for name, field in leaves.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values and name not in failed:
            place = name if len(layers) > 1 or layers[0][0] == COMMAND_LINE else f"{layers[0][0]}: {name}"
            problems.append(f"{place}: missing; expected {field.metadata['help']}.")
    return values, problems


def _flatten(options: type, layer: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted names and values of a mapping with mappings in it. A name that is not known comes as it is."""
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(options)}
    for key, value in layer.items():
        name = str(key)  # YAML allows numbers
        nested = dataclasses.is_dataclass(kinds.get(name))
        if nested and isinstance(value, kinds[name]):
            value = dataclasses.asdict(value)
        if nested and isinstance(value, Mapping):
            yield from _flatten(kinds[name], value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _unknown(name: str, place: str, leaves: Iterable[str]) -> str:
    known = {leaf.rpartition(".")[2]: leaf for leaf in leaves}
    sections = {leaf.partition(".")[0] for leaf in leaves if "." in leaf}
    if name in sections:
        inside = ", ".join(leaf.partition(".")[2] for leaf in leaves if leaf.startswith(f"{name}."))
        return f"{place}: expected a mapping with {inside}."
    near = difflib.get_close_matches(name.rpartition(".")[2], [*known, *sections], n=1)
    hint = f" Did you mean {known.get(near[0], near[0])}?" if near else ""
    return f"{place}: there is no such option.{hint}"


def _build(options: type[_T], values: Mapping[str, Any]) -> _T:
    arguments = {name: value for name, value in values.items() if "." not in name}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        inside = {n.partition(".")[2]: value for n, value in values.items() if n.startswith(f"{field.name}.")}
        if inside:
            arguments[field.name] = _build(typing.cast(type, field.type), inside)
    return options(**arguments)


class _Unfit(Exception):
    """A value is not what its option expects; says what that is."""


def _convert(value: Any, hint: Any, place: str) -> Any:
    """A value as its annotation wants it: strings are read, nothing is guessed.

    Raises:
        _Unfit: it cannot be read so.
        ConfigError: an item of a list of options is wrong.
    """
    if typing.get_origin(hint) is types.UnionType:
        inner = next(kind for kind in typing.get_args(hint) if kind is not type(None))
        return None if value is None or (value == "none" and inner is not str) else _convert(value, inner, place)
    if typing.get_origin(hint) is list:
        return _convert_list(value, typing.get_args(hint)[0], place)
    if typing.get_origin(hint) is dict:
        return _read_pairs(value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            value = dataclasses.asdict(value)
        if not isinstance(value, Mapping):
            raise _Unfit("a mapping with " + ", ".join(leaf_fields(hint)))
        return resolve(hint, [(place, value)])
    found = _read(value, hint)
    if found is None:
        raise _Unfit(_EXPECTED[hint])
    return found


def _convert_list(value: Any, item: Any, place: str) -> list[Any]:
    if isinstance(value, str):  # "a, b" on the command line
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise _Unfit("a list")
    try:
        return [_convert(part, item, f"{place}[{index}]") for index, part in enumerate(value)]
    except _Unfit as expected:
        raise _Unfit(f"a list, each {expected}") from None


def _read_pairs(value: Any) -> dict[str, str]:
    """A mapping of texts, or a list of "name=text" from the command line."""
    if isinstance(value, list) and all(isinstance(part, str) and "=" in part for part in value):
        value = {name.strip(): text.strip() for name, _, text in (part.partition("=") for part in value)}
    if not isinstance(value, Mapping):
        raise _Unfit("NAME=OTHER NAME" if isinstance(value, list) else "a mapping of names, as {rbc: red blood cell}")
    found = {_read(name, str): _read(text, str) for name, text in value.items()}
    if None in found or None in found.values():
        raise _Unfit("a text for every name, as {rbc: red blood cell}")
    return found


def _read(value: Any, kind: type) -> Any:
    """A value as a bool, str, int or float, or None where it is none."""
    if kind is bool:
        return value if isinstance(value, bool) else _TRUTH.get(str(value).lower())
    if isinstance(value, bool):
        return None
    if kind is str:
        return str(value) if isinstance(value, str | int | Path) and value != "" else None
    if kind is int and isinstance(value, int):  # it may be too large for a float
        return value
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if kind is int:
        return int(number) if number.is_integer() else None
    return number if math.isfinite(number) else None


def _range_problem(field: dataclasses.Field[Any], value: Any) -> str:
    """What is wrong with a converted value, or ""."""
    known = field.metadata
    if not known or value is None:
        return ""
    items = value if isinstance(value, list) else [value]
    strange = [item for item in items if known["choices"] and item not in known["choices"]]
    if strange:
        return f"expected {' or '.join(known['choices'])}, got {_shown(strange[0])}."
    low, high = known["low"], known["high"]
    for number in items:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        too_low = number <= low if known["above"] else number < low
        too_high = number >= high if known["below"] else number > high
        if too_low or too_high:
            least = f"{'above' if known['above'] else 'of at least'} {low}" if math.isfinite(low) else ""
            most = f"{'below' if known['below'] else 'of at most'} {high}" if math.isfinite(high) else ""
            return f"expected a number {' and '.join(filter(None, (least, most)))}, got {number}."
    return ""


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
