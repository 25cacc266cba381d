"""The `groundtune` command: its parsers and exit codes. What the verbs do is in `verbs`, their options in `config`.

The parsers are made from the dataclasses, and values stay strings until `options.resolve`, so that every mistake of a
command line is reported at once. `--help` does not import torch.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from groundtune import __version__, config, verbs
from groundtune.errors import ConfigError, GroundtuneError, Interrupted, suggestion
from groundtune.options import flag_of, leaf_fields


class _Verb(NamedTuple):
    run: Callable[[dict[str, Any]], int | None]  # an exit code, None is 0
    options: type | None
    help: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, the process's own where `argv` is None, and give the exit code.

    Errors of the user have been printed in words; anything else is a fault of ours and is raised.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or bool(os.environ.get("GROUNDTUNE_DEBUG"))
    try:
        return _run([argument for argument in arguments if argument != "--debug"])
    except GroundtuneError as error:
        if debug:
            raise
        print(f"groundtune: {'' if isinstance(error, Interrupted) else 'error: '}{error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        print("groundtune: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of stdout, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: list[str]) -> int:
    parser, parsers = _parsers()
    if not arguments:
        parser.print_help(sys.stderr)
        return ConfigError.exit_code
    try:
        verb, values = _parse(arguments, parser, parsers)
    except SystemExit as finished:  # --help and --version
        return int(finished.code or 0)
    code = _VERBS[verb].run(values)
    sys.stdout.flush()
    return code or 0


class _Parser(argparse.ArgumentParser):
    """One line per mistake, instead of a usage of forty options (pitfall 32)."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See {self.prog} --help.")


def _parse(arguments: list[str], parser: _Parser, parsers: dict[str, _Parser]) -> tuple[str, dict[str, Any]]:
    """The verb, and the values that were given, by the names of the options."""
    verb = arguments[0]
    if verb.startswith("-"):
        parser.parse_args(arguments)
    if verb not in parsers:
        raise ConfigError(f"there is no command {verb!r}.{suggestion(verb, parsers)} See groundtune --help.")
    # The verb's parser is called directly, and "intermixed": otherwise options before an optional DATA would hide it.
    values, unknown = parsers[verb].parse_known_intermixed_args(arguments[1:])
    options = [argument.partition("=")[0] for argument in unknown if argument.startswith("-")]
    if options:
        near = suggestion(options[0], parsers[verb]._option_string_actions)
        raise ConfigError(f"there is no option {options[0]}.{near} See groundtune {verb} --help.")
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is one argument too many. See groundtune {verb} --help.")
    return verb, vars(values)


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(
        prog="groundtune",
        description="Fine-tune Grounding DINO on your own boxes.",
        epilog="Exit codes: 0 ok, 2 options, 3 data, 4 model, 5 training diverged, 6 out of memory, 130 interrupted, "
        "143 stopped by SIGTERM or SIGUSR1. "
        "Every command takes --debug, which shows the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"groundtune {__version__}")
    places = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    parsers = {}
    for name, verb in _VERBS.items():
        usage = f"groundtune {name}{_USAGES.get(name, '')}"
        parsers[name] = places.add_parser(
            name, usage=usage, help=verb.help, description=verb.help, allow_abbrev=False
        )
        if verb.options is not None:
            _add_options(parsers[name], verb.options)
    told = "YAML file of options, param_groups too"
    parsers["train"].add_argument("--config", metavar="FILE", help=told, default=argparse.SUPPRESS)
    parsers[
        "train"
    ].epilog = "The model's recipe may have other defaults. It < the YAML file < the command line."
    return parser, parsers


def _add_options(parser: _Parser, options: type) -> None:
    """Add an options class's fields; values stay strings, and those that are not given stay away."""
    groups: dict[str, Any] = {"": parser}
    for name, field in leaf_fields(options).items():
        known = field.metadata
        if not known or not known["flag"]:
            continue
        if known["group"] not in groups:
            groups[known["group"]] = parser.add_argument_group(known["group"])
        kind = str(field.type)
        settings = {"help": known["help"].replace("%", "%%"), "default": argparse.SUPPRESS}
        if isinstance(field.default, bool):
            settings["help"] += f" (default: {'on' if field.default else 'off'})"
        elif isinstance(field.default, int | float | str):
            settings["help"] += f" (default: {field.default})"
        if known["positional"]:  # never required here: `resolve` says what is missing
            settings |= {"metavar": name.upper(), "nargs": "*" if "list" in kind else "?"}
        elif isinstance(field.default, bool):
            settings |= {"dest": name, "action": argparse.BooleanOptionalAction}
        else:
            settings |= {
                "dest": name,
                "metavar": next((m for word, m in _METAVARS.items() if word in kind), "VALUE"),
            }
            settings |= {"metavar": "TEXT"} if known["repeat"] else {}
        if "dict" in kind or known["repeat"]:
            settings["action"] = "append"  # one pair, or text, for each use of the option
        groups[known["group"]].add_argument(flag_of(name, field), **settings)


_METAVARS = {"dict": "NAME=OTHER", "list": "A,B", "int": "N", "float": "X"}
_VERBS = {
    "train": _Verb(verbs.train, config.TrainConfig, "fine-tune a model on a folder of images with boxes"),
    "evaluate": _Verb(
        verbs.evaluate, config.EvaluateConfig, "measure a model on a data set: AP, or recall of phrases"
    ),
    "blend": _Verb(
        verbs.blend, config.BlendConfig, "find the best model between a base and its fine-tuned child"
    ),
    "check": _Verb(verbs.check, config.CheckConfig, "look for what is wrong with a data set"),
    "convert": _Verb(verbs.convert, config.ConvertConfig, "write a data set in another format"),
    "init": _Verb(verbs.init, config.InitConfig, "write a generated data set"),
    "predict": _Verb(verbs.predict, config.PredictConfig, "find objects by name in images"),
    "label": _Verb(verbs.label, config.LabelConfig, "draw the boxes of images by a model, as a data set"),
    "review": _Verb(
        verbs.review, config.ReviewConfig, "accept, rename and reject the boxes of a model in the browser"
    ),
    "demo": _Verb(verbs.demo, config.DemoConfig, "find objects by name on a page in the browser"),
    "export": _Verb(verbs.export, config.ExportConfig, "write a model for other tools"),
    "report": _Verb(verbs.report, config.ReportConfig, "write report.html of a run, or compare runs"),
    "models": _Verb(verbs.models, None, "list the built-in models"),
    "env": _Verb(verbs.env, None, "show versions and the machine, for results and bug reports"),
}
_USAGES = {
    "train": " DATA [--model MODEL] [options]",
    "evaluate": " MODEL DATA [options]",
    "blend": " BASE TUNED --output-dir FOLDER [options]",
    "check": " DATA [options]",
    "convert": " DATA OUT --format coco|yolo|voc|odvg [--link]",
    "init": " scenes OUT [options]",
    "predict": " MODEL IMAGES... [options]",
    "label": " MODEL [IMAGES...] --output-dir FOLDER [--data DATA] [options]",
    "review": " DATA [options]",
    "demo": " MODEL [--base MODEL] [options]",
    "export": " MODEL --format hf|onnx|openvino|idea --output-dir PATH [options]",
    "report": " RUN... [options]",
}

if __name__ == "__main__":
    sys.exit(main())
