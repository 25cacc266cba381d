"""Declare options as dataclass fields, and read them from YAML, the command line or Python.

`option` declares a field with its help line and its range. `resolve` merges layers of values into
an instance. It reports all mistakes of all layers in one error: where each of them is, what was
expected, and the closest name that exists.

YAML 1.1 reads `lr: 1e-4` as a string, because its exponent has no dot. `resolve` reads the number.
"""

import contextlib
import dataclasses
import difflib
import math
import operator
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from groundtune.errors import ConfigError
from groundtune.option_values import Unfit, convert, plain, range_text, shown, value_problem

COMMAND_LINE = "command line"

Layer = tuple[str, Mapping[str, Any]]
"""The name of a source in messages (`COMMAND_LINE`, a file, or "train()"), and its values."""

_T = TypeVar("_T")


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
    short: str = "",
) -> Any:
    """Declare a dataclass field as an option.

    Args:
        default: Default value. A list or dict is copied. An option without one is required.
        help: One line with the unit. `help_text` adds the default and the range.
        low: Smallest number; `above` excludes it.
        high: Largest number; `below` excludes it.
        choices: Allowed strings; empty allows all.
        positional: Whether the command line takes it as a positional argument.
        flag: False hides it from the command line. A string such as "--rename" replaces its flag.
        repeat: Whether each use of the flag adds one item to a list. The items may contain commas.
        short: Short flag, such as "-o".
        group: Heading in the help text; empty puts it under the general one.
    """
    known = {
        "help": help,
        "group": group,
        "choices": choices,
        "positional": positional,
        "flag": flag,
        "short": short,
    }
    known |= {"low": low, "high": high, "above": above, "below": below, "repeat": repeat}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=known)
    return dataclasses.field(default=default, metadata=known)


def leaf_fields(options: type) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields by name, those of a nested class by dotted name ("optimizer.lr")."""
    leaves: dict[str, dataclasses.Field[Any]] = {}
    for field in dataclasses.fields(options):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            leaves |= {f"{field.name}.{name}": leaf for name, leaf in leaf_fields(field.type).items()}
        else:
            leaves[field.name] = field
    return leaves


def flag_of(name: str, field: dataclasses.Field[Any]) -> str:
    """Return the flag of an option ("--weight-decay"), or the name of a positional one."""
    flag = field.metadata.get("flag")
    if field.metadata.get("positional"):
        return name
    return flag if isinstance(flag, str) else "--" + name.rpartition(".")[2].replace("_", "-")


def help_text(field: dataclasses.Field[Any]) -> str:
    """Return the help line with default and range: "images per step (default: 4; at least 1)"."""
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = ",".join(map(plain, field.default_factory()))
    elif isinstance(default, bool):
        default = "on" if default else "off"
    notes = [] if default in (dataclasses.MISSING, None, "") else [f"default: {plain(default)}"]
    notes += filter(None, [range_text(field.metadata)])
    return field.metadata["help"] + (f" ({'; '.join(notes)})" if notes else "")


def resolve(options: type[_T], layers: Sequence[Layer], renamed: Mapping[str, str] = {}) -> _T:
    """Merge layers of values into an instance. Later layers override earlier ones.

    Args:
        options: A dataclass whose fields were declared by `option`.
        layers: Sources and their values. Strings are converted to the type of the field.
        renamed: Other names of options, for the suggestions; see `unknown_option`.

    Raises:
        ConfigError: Options are unknown, missing, of a wrong type or out of range; lists all.
    """
    problems: list[str] = []
    values = _merge(options, layers, renamed, problems)
    fail(problems)
    return _build(options, values)


def check(options: Any) -> list[str]:
    """Return the range problems of an instance that was created directly."""
    leaves = leaf_fields(type(options)).items()
    problems = {n: value_problem(operator.attrgetter(n)(options), field.metadata) for n, field in leaves}
    return [f"{name}: {problem}" for name, problem in problems.items() if problem]


def fail(problems: Sequence[str]) -> None:
    """Raise a ConfigError that lists all problems, or return if there are none."""
    if len(problems) > 1:
        raise ConfigError("\n  ".join([f"{len(problems)} problems with the options:", *problems]))
    if problems:
        raise ConfigError(problems[0])


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of options. An empty file gives {}.

    Raises:
        ConfigError: The file does not exist, is not YAML, or is not a mapping.
    """
    from groundtune.files import parse_yaml  # here, because --help does without PyYAML

    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"Cannot read the configuration {path}: {error.strerror}. Expected a YAML file."
        raise ConfigError(message) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"Cannot read the configuration {path}: it is not UTF-8 text.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML{error}.") from error
    if content is not None and not isinstance(content, dict):
        expected = "a mapping of options such as `epochs: 20`"
        raise ConfigError(f"{path}: expected {expected}, got {shown(content)}.")
    return content or {}


def unknown_option(name: str, options: type, where: str, renamed: Mapping[str, str] = {}) -> str:
    """Return the message about an option that does not exist, with a suggestion where possible.

    Args:
        name: The name as the user wrote it, with dashes or underscores.
        options: The options class.
        where: The name of the layer.
        renamed: Our names, or sentences with our names in braces, and the other names that users
            type for each of them, separated by spaces. An entry whose names `options` lacks is
            skipped.
    """
    inside = [leaf.partition(".")[2] for leaf in leaf_fields(options) if leaf.startswith(f"{name}.")]
    if inside:
        return f"{where}: {name}: expected a mapping with {', '.join(inside)}."
    known: dict[str, str] = {}  # what the user may have meant, and how it is written in this layer
    for leaf, field in leaf_fields(options).items():
        key = leaf.rpartition(".")[2]
        if where != COMMAND_LINE:
            known |= {leaf.partition(".")[0]: leaf.partition(".")[0], key: _name_in(where, leaf)}
        elif field.metadata.get("positional"):
            known[key] = key.upper()
        elif field.metadata.get("flag"):
            flag = flag_of(leaf, field)
            known[_key(flag)] = flag
            if field.type is bool:
                known["no_" + _key(flag)] = "--no-" + flag[2:]
    flag = name if name.startswith("-") else "--" + name.replace("_", "-")
    message = f"{flag if where == COMMAND_LINE else f'{where}: {name}'}: there is no such option."
    targets = [ours for ours, others in renamed.items() if _key(name) in others.split()]
    for target in targets:
        with contextlib.suppress(KeyError):
            if " " in target:
                return f"{message} {target.format_map(known)}"
    near = [target for target in (*targets, _key(name)) if target in known]
    near += difflib.get_close_matches(_key(name), known, n=1)
    if near and known[near[0]].isupper():
        return f"{message} Give {known[near[0]]} without a flag."
    return f"{message} Did you mean {known[near[0]]}?" if near else message


def _merge(
    options: type, layers: Sequence[Layer], renamed: Mapping[str, str], problems: list[str]
) -> dict[str, Any]:
    """Return the converted values by dotted name, and append what is wrong to `problems`."""
    leaves = leaf_fields(options)
    values: dict[str, Any] = {}
    given: set[str] = set()
    for where, layer in layers:
        for name, value in _flatten(options, layer):
            given.add(name)
            if name not in leaves:
                problems.append(unknown_option(name, options, where, renamed))
                continue
            place = _place(name, leaves[name], where)
            try:
                values[name] = _convert(value, leaves[name].type, place, problems)
                problem = value_problem(values[name], leaves[name].metadata)
            except Unfit as expected:
                problem = f"expected {expected}, got {shown(value)}."
            problems += [f"{place}: {problem}"] if problem else []
    for name, field in leaves.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in given:
            place = _place(name, field, layers[-1][0])  # the layer nearest to the user
            problems.append(f"{place}: missing; expected {field.metadata['help']}.")
    return values


def _convert(value: Any, hint: Any, place: str, problems: list[str]) -> Any:
    """Convert a value. Mistakes in a list of nested options go to `problems` with their places."""
    item = next(iter(typing.get_args(hint)), None)
    if not dataclasses.is_dataclass(item):
        return convert(value, hint)
    kind = typing.cast(type, item)
    parts: list[Any] = list(value) if isinstance(value, list) else [None]
    parts = [dataclasses.asdict(part) if isinstance(part, kind) else part for part in parts]  # type: ignore[call-overload]
    if not all(isinstance(part, Mapping) for part in parts):
        raise Unfit("a list, each item a mapping with " + ", ".join(leaf_fields(kind)))
    before = len(problems)
    merged = [_merge(kind, [(f"{place}[{n}]", part)], {}, problems) for n, part in enumerate(parts)]
    return [_build(kind, values) for values in merged] if len(problems) == before else []


def _key(name: str) -> str:
    return name.lstrip("-").replace("-", "_").rpartition(".")[2]


def _name_in(where: str, name: str) -> str:
    """Return "optimizer.lr" as a file has it, or "lr" as a Python function takes it."""
    return name.rpartition(".")[2] if where.endswith("()") else name


def _place(name: str, field: dataclasses.Field[Any], where: str) -> str:
    return flag_of(name, field) if where == COMMAND_LINE else f"{where}: {_name_in(where, name)}"


def _flatten(options: type, layer: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of a layer, unknown ones included."""
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


def _build(options: type[_T], values: Mapping[str, Any]) -> _T:
    """Create an instance from values by dotted name."""
    arguments = {name: value for name, value in values.items() if "." not in name}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        inside = {n.partition(".")[2]: v for n, v in values.items() if n.startswith(f"{field.name}.")}
        if inside:
            arguments[field.name] = _build(typing.cast(type, field.type), inside)
    return options(**arguments)
