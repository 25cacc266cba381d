"""Declare options as dataclass fields, and read them from YAML, the command line or Python.

`option` declares a field with its help line and its range. `resolve` merges layers of values into
an instance. It reports all mistakes of all layers in one error: where each of them is, what was
expected, and the closest name that exists.

YAML 1.1 reads `lr: 1e-4` as a string, because its exponent has no dot. `resolve` reads the number.
"""

import contextlib
import dataclasses
import difflib
import functools
import math
import operator
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from groundtune.errors import ConfigError
from groundtune.option_values import Unfit, convert, one_of, plain, range_text, shown, value_problem

COMMAND_LINE = "command line"

Field = dataclasses.Field[Any]
Values = Mapping[str, Any]
Layer = tuple[str, Values | Callable[[Values], Values]]
"""Name of a source in messages (`COMMAND_LINE`, a file, or "train()"), and its values. A function
receives the values of the stronger layers, and is only called if they are complete and right."""

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
    flag: bool = True,
    repeat: bool = False,
    auto: bool = False,
    group: str = "",
    short: str = "",
) -> Any:
    """Declare a dataclass field as an option.

    Args:
        default: default value; a list or dict is copied. An option without one is required.
        help: one line with the unit. `help_text` adds default, range and choices.
        low: smallest number; `above` excludes it.
        high: largest number; `below` excludes it.
        choices: allowed strings; empty allows all.
        positional: whether the command line takes it without a flag.
        flag: whether the command line has it.
        repeat: whether each use of the flag adds one item to a list. The items may contain commas.
        auto: whether the word "auto" may stand for 0.
        group: heading in the help text; empty puts it under the general one.
        short: short flag, such as "-o".
    """
    metadata: dict[str, Any] = {"help": help, "choices": choices, "group": group, "short": short}
    metadata |= {"low": low, "high": high, "above": above, "below": below}
    metadata |= {"positional": positional, "flag": flag, "repeat": repeat, "auto": auto}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def leaf_fields(options: type) -> dict[str, Field]:
    """Return the fields by name, those of a nested class by dotted name ("optimizer.lr")."""
    leaves: dict[str, Field] = {}
    for field in dataclasses.fields(options):
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            leaves |= {f"{field.name}.{name}": leaf for name, leaf in leaf_fields(field.type).items()}
        else:
            leaves[field.name] = field
    return leaves


def is_required(field: Field) -> bool:
    """Return whether an option has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def flag_of(name: str, field: Field) -> str:
    """Return an option as on the command line: "--weight-decay", or "DATA" if positional."""
    key = name.rpartition(".")[2]
    return key.upper() if field.metadata.get("positional") else "--" + key.replace("_", "-")


def help_text(field: Field) -> str:
    """Return the help line with default and range: "images per step (default: 4; at least 1)"."""
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = ",".join(map(plain, field.default_factory()))
    elif isinstance(default, bool):
        default = "on" if default else "off"
    notes = [] if default in (dataclasses.MISSING, None, "") else [f"default: {plain(default)}"]
    notes += filter(None, [range_text(field.metadata)])
    return field.metadata["help"] + (f" ({'; '.join(notes)})" if notes else "")


def resolve(options: type[_T], layers: Sequence[Layer]) -> _T:
    """Merge layers of values into an instance.

    Args:
        options: a dataclass whose fields were declared by `option`.
        layers: sources and their values, the strongest first. Strings are converted to the type of
            the field.

    Raises:
        ConfigError: options are unknown, missing, of a wrong type or out of range; lists all.
    """
    problems: list[str] = []
    values = _merge(options, layers, problems)
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
        ConfigError: the file does not exist, is not YAML, or is not a mapping.
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


def unknown_option(name: str, options: type, where: str) -> str:
    """Return the message about an option that does not exist, with a suggestion where possible.

    Args:
        name: the name as the user wrote it, such as "--learning_rate".
        options: the options class.
        where: the name of the layer.
    """
    inside = [leaf.partition(".")[2] for leaf in leaf_fields(options) if leaf.startswith(f"{name}.")]
    if inside:
        return f"{where}: {name}: expected a mapping with {', '.join(inside)}."
    known = _spellings(options, where)
    place = name if where == COMMAND_LINE else f"{where}: {name}"
    message, key = f"{place}: there is no such option.", _key(name)
    aliases = [target for target, others in other_names().items() if key in others]
    for target in aliases:
        with contextlib.suppress(KeyError):  # a sentence about options that this class does not have
            if " " in target:
                return f"{message} {target.format_map(known)}"
    near = [target for target in (*aliases, key) if target in known]
    near += difflib.get_close_matches(key, known, n=1)
    if near and known[near[0]].isupper():
        return f"{message} Give {known[near[0]]} without a flag."
    return f"{message} Did you mean {known[near[0]]}?" if near else message


@functools.cache
def other_names() -> dict[str, list[str]]:
    """Return our options, or sentences, and the names that users type instead of them."""
    lines = Path(__file__).with_name("option_aliases.txt").read_text("utf-8").splitlines()
    rows = [line.rpartition(": ") for line in lines if line and not line.startswith("#")]
    return {target: names.split() for target, _, names in rows}


def _spellings(options: type, where: str) -> dict[str, str]:
    """Return what a user may have meant, and how it is written in this layer."""
    known: dict[str, str] = {}
    for leaf, field in leaf_fields(options).items():
        key = leaf.rpartition(".")[2]
        if where != COMMAND_LINE:
            known |= {leaf.partition(".")[0]: leaf.partition(".")[0], key: _name_in(where, leaf)}
        elif field.metadata.get("flag"):
            known[key] = flag_of(leaf, field)
            if field.type is bool:
                known[f"no_{key}"] = f"--no-{known[key][2:]}"
    return known


def _merge(options: type, layers: Sequence[Layer], problems: list[str]) -> dict[str, Any]:
    """Return the converted values by dotted name, and append what is wrong to `problems`."""
    leaves = leaf_fields(options)
    values: dict[str, Any] = {}
    for where, layer in layers:
        if callable(layer):
            fail(problems + _missing(leaves, values, layers[0][0]))
            layer = layer(values)
        for name, value in _flatten(options, layer):
            if name not in leaves:
                problems.append(unknown_option(name, options, where))
                continue
            place = _place(name, leaves[name], where)
            value = 0 if leaves[name].metadata.get("auto") and str(value) == "auto" else value
            converted = None
            try:
                converted = _convert(value, leaves[name].type, place, problems)
                problem = value_problem(converted, leaves[name].metadata)
            except Unfit as expected:
                problem = f"expected {expected}, got {shown(value)}."
            values.setdefault(name, converted)
            problems += [f"{place}: {problem}"] if problem else []
    problems += _missing(leaves, values, layers[0][0])
    return values


def _missing(leaves: Mapping[str, Field], values: Values, where: str) -> list[str]:
    """Return the problems of required options without a value; `where` is the top layer."""
    names = [name for name, field in leaves.items() if is_required(field) and name not in values]
    problems = []
    for name in names:
        choices, expected = leaves[name].metadata["choices"], leaves[name].metadata["help"]
        expected = f"{expected}: {one_of(choices)}" if choices else expected
        problems.append(f"{_place(name, leaves[name], where)}: missing; expected: {expected}.")
    return problems


def _convert(value: Any, hint: Any, place: str, problems: list[str]) -> Any:
    """Convert a value. Mistakes in a list of nested options go to `problems` with their places."""
    item = next(iter(typing.get_args(hint)), None)
    if not (isinstance(item, type) and dataclasses.is_dataclass(item)):
        return convert(value, hint)
    parts: list[Any] = list(value) if isinstance(value, list) else [None]
    parts = [vars(part) if isinstance(part, item) else part for part in parts]
    if not all(isinstance(part, Mapping) for part in parts):
        raise Unfit("a list, each item a mapping with " + ", ".join(leaf_fields(item)))
    before = len(problems)
    merged = [_merge(item, [(f"{place}[{n}]", part)], problems) for n, part in enumerate(parts)]
    return [_build(item, values) for values in merged] if len(problems) == before else []


def _key(name: str) -> str:
    return name.lstrip("-").replace("-", "_").rpartition(".")[2]


def _name_in(where: str, name: str) -> str:
    """Return "optimizer.lr" as a file has it, or "lr" as a Python function takes it."""
    return name.rpartition(".")[2] if where.endswith("()") else name


def _place(name: str, field: Field, where: str) -> str:
    return flag_of(name, field) if where == COMMAND_LINE else f"{where}: {_name_in(where, name)}"


def _flatten(options: type, layer: Values, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of a layer, unknown ones included."""
    kinds: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(options)}
    for key, value in layer.items():
        name = str(key)  # YAML allows numbers
        nested = dataclasses.is_dataclass(kinds.get(name))
        if nested and isinstance(value, kinds[name]):
            value = vars(value)
        if nested and isinstance(value, Mapping):
            yield from _flatten(kinds[name], value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _build(options: type[_T], values: Values) -> _T:
    """Create an instance from values by dotted name."""
    arguments = {name: value for name, value in values.items() if "." not in name}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        inside = {n.partition(".")[2]: v for n, v in values.items() if n.startswith(f"{field.name}.")}
        if inside and isinstance(field.type, type):
            arguments[field.name] = _build(field.type, inside)
    return options(**arguments)
