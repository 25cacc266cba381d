"""The `groundtune` command: a parser in front of `api`, and a printer behind it.

Results go to stdout, messages and progress to stderr. The parsers are made from the dataclasses in
`config`. Values stay strings until `options.resolve`, so that all mistakes of a command line are
reported at once. `--help` does not import torch.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, redirect_stdout, suppress
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn

from groundtune import api, printing
from groundtune import config as configs
from groundtune._version import __version__
from groundtune.errors import (
    ConfigError,
    DataError,
    GroundtuneError,
    Interrupted,
    NotWritten,
    OutOfMemory,
    first_line,
    suggestion,
)
from groundtune.options import (
    COMMAND_LINE,
    Field,
    flag_of,
    help_text,
    is_required,
    leaf_fields,
    resolve,
    unknown_option,
)
from groundtune.progress import format_metric

_METAVARS = {"dict": "NAME=PHRASE", "list": "A,B", "int": "N", "float": "X"}
_VALUES = {
    **{"output_dir": "DIR", "output": "PATH", "data": "PATH", "captions": "FILE", "base": "MODEL"},
    **{"resume": "RUN", "thresholds": "A=X,B=Y|FILE|RUN", "push_to_hub": "OWNER/NAME", "ray": "ADDRESS"},
}
_ORDER = ("", "run", "training", "loss", "images", "prompts", "detections", "compute")  # of groups in help


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (by default that of the process), and return the exit code.

    Errors of the user are printed; other errors are bugs, and are raised.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its warnings about lost processes are long
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
    except BrokenPipeError:  # the reader of stdout, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (RuntimeError, MemoryError) as error:
        if debug or not (text := _out_of_memory(error, arguments[0])):
            raise
        print(f"groundtune: error: {text}", file=sys.stderr)
        return OutOfMemory.exit_code


def _out_of_memory(error: RuntimeError | MemoryError, verb: str) -> str:
    """Return the message about memory where no batch is left to halve; "" of another error."""
    from groundtune.device import is_out_of_memory

    if not is_out_of_memory(error):
        return ""
    fixes = {"batch_size": "a smaller --batch-size, ", "device": "another --device, "}
    fix = "".join(text for name, text in fixes.items() if name in leaf_fields(_VERBS[verb].options))
    return f"Out of memory ({first_line(error)}). Use {fix}a smaller model or a larger machine."


def _run(arguments: list[str]) -> int:
    parser, parsers = build_parsers()
    if not arguments:
        parser.print_help(sys.stderr)
        return ConfigError.exit_code
    try:
        name, values = _parse(arguments, parser, parsers)
    except SystemExit as finished:  # --help and --version
        return int(finished.code or 0)
    verb = _VERBS[name]
    if verb.options is configs.TrainConfig:
        config: Any = api.training_options(values, values.pop("config", None), COMMAND_LINE)
    else:
        config = resolve(verb.options, [(COMMAND_LINE, values)])
    code = verb.run(config)
    sys.stdout.flush()
    return code or 0


class _Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See {self.prog} --help.")


def _parse(
    arguments: list[str], parser: _Parser, parsers: Mapping[str, _Parser]
) -> tuple[str, dict[str, Any]]:
    """Return the verb and its values by the names of the options."""
    verb = arguments[0]
    if verb.startswith("-"):
        parser.parse_args(arguments)
    if verb not in parsers:
        raise ConfigError(f"there is no command {verb!r}.{suggestion(verb, parsers)} See groundtune --help.")
    # The verb's parser is called directly, "intermixed": else options before DATA would hide it.
    values, unknown = parsers[verb].parse_known_intermixed_args(arguments[1:])
    see = f"See groundtune {verb} --help."
    if flags := [argument.partition("=")[0] for argument in unknown if argument.startswith("-")]:
        raise ConfigError(f"{unknown_option(flags[0], _VERBS[verb].options, COMMAND_LINE)} {see}")
    if unknown:
        raise ConfigError(f"unexpected argument {unknown[0]!r}. {see}")
    return verb, vars(values)


def build_parsers() -> "tuple[_Parser, dict[str, _Parser]]":
    """Return the parser of the program, and those of its verbs by name."""
    parser = _Parser(
        prog="groundtune",
        description="Fine-tune Grounding DINO on your own boxes.",
        epilog="Exit codes: 0 success, 2 options, 3 data, 4 model, 5 training diverged, 6 out of memory, "
        "130 interrupted, 143 interrupted by SIGTERM or SIGUSR1. "
        "With --debug, every command shows the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"groundtune {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    parsers = {}
    for name, verb in _VERBS.items():
        text = (verb.options.__doc__ or "").strip()
        parsers[name] = subparsers.add_parser(
            name,
            usage=_usage(name, verb.options),
            help=text[0].lower() + text[1:].rstrip("."),
            description=text,
            allow_abbrev=False,
        )
        _add_options(parsers[name], verb.options)
    train = parsers["train"]
    train.add_argument(
        "--config", metavar="FILE", help="YAML file of options, also param_groups", default=argparse.SUPPRESS
    )
    train.epilog = (
        "A model's recipe may have other defaults. The YAML file overrides it, the command line both."
    )
    return parser, parsers


def _usage(name: str, options: type) -> str:
    """Return the usage with what is required, such as "groundtune check DATA [options]"."""
    words = ["groundtune", name]
    leaves = leaf_fields(options)
    for key, field in sorted(leaves.items(), key=lambda item: not item[1].metadata.get("positional")):
        word = flag_of(key, field)
        if field.metadata.get("positional"):
            word = "|".join(field.metadata["choices"]) or word
            word += "..." if "list" in str(field.type) else ""
            words.append(word if is_required(field) else f"[{word}]")
        elif is_required(field):
            words.append(f"{word} {_metavar(key, field)}")
    return " ".join([*words, *(["[options]"] if leaves else [])])


def _add_options(parser: argparse.ArgumentParser, options: type) -> None:
    """Add the fields of an options class; values stay strings, and omitted ones are absent."""
    groups: dict[str, Any] = {"": parser}
    shown = [item for item in leaf_fields(options).items() if item[1].metadata.get("flag")]
    for name, field in sorted(shown, key=lambda item: _ORDER.index(item[1].metadata["group"])):
        known = field.metadata
        if known["group"] not in groups:
            groups[known["group"]] = parser.add_argument_group(known["group"])
        settings: dict[str, Any] = {"help": help_text(field).replace("%", "%%"), "default": argparse.SUPPRESS}
        flags = [flag_of(name, field), *([known["short"]] if known["short"] else [])]
        if known["positional"]:  # never required here: `resolve` reports what is missing
            flags = [name]
            settings |= {"metavar": name.upper(), "nargs": "*" if "list" in str(field.type) else "?"}
        elif field.type is bool:
            settings |= {"dest": name, "action": argparse.BooleanOptionalAction}
        else:
            settings |= {"dest": name, "metavar": _metavar(name, field)}
        if str(field.type).startswith("dict") or known["repeat"]:
            settings["action"] = "append"  # each use of the option adds one
        groups[known["group"]].add_argument(*flags, **settings)


def _metavar(name: str, field: Field) -> str:
    """Return what the help text shows as the value of an option."""
    choices, kind = field.metadata["choices"], str(field.type)
    if choices and field.type is str:
        return "|".join(choices)
    if field.metadata["repeat"]:
        return "TEXT"
    by_type = next((text for word, text in _METAVARS.items() if word in kind), name.upper())
    return _VALUES.get(name, by_type)


def _train(config: configs.TrainConfig) -> int | None:
    result = api.train_in_processes(config)
    if result is not None and not isinstance(result, int):
        printing.print_run(result, api.retention_rows(result))
        return None
    return result


def _evaluate(config: configs.EvaluateConfig) -> None:
    failed = None
    try:
        result = api.evaluate(config=config, quiet=False)
    except NotWritten as error:
        result, failed = error.result, error
    if config.json:
        content = {"split": config.split, "metrics": result.metrics, "per_class": result.per_class}
        print(json.dumps(content, indent=2))
    else:
        rows = [[name, format_metric(value)] for name, value in result.metrics.items()]
        print(printing.table([[config.split, ""], *rows]))
        if result.per_class:
            print(f"\n{printing.class_scores(result.per_class)}")
    if failed is not None:
        raise failed


def _predict(config: configs.PredictConfig) -> int:
    with closing(api.predict(config=config, quiet=False)) as predictions:
        unreadable = printing.print_predictions(predictions, as_json=config.json)
    if config.output_dir is not None:
        print(f"The results are in {config.output_dir}.", file=sys.stderr)
    return printing.print_skipped(unreadable)


def _label(config: configs.LabelConfig) -> int:
    result = api.label(config=config, images=(), quiet=False)
    printing.print_written(result.written, config.format, config.output_dir)
    return printing.print_skipped(list(result.unreadable))


def _blend(config: configs.BlendConfig) -> None:
    points, best = api.blend(config=config, quiet=False)
    print(printing.table(api.blend_rows(points, best)))
    print(f"\nThe chosen model is in {config.output_dir}, with blend.json and blend.html.")


def _check(config: configs.CheckConfig) -> int:
    report = api.check(config=config, quiet=False)
    if config.json:
        print(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        printing.print_report(report)
    failed = report.count("error") or (config.strict and report.count("warning"))
    return DataError.exit_code if failed else 0


def _convert(config: configs.ConvertConfig) -> None:
    printing.print_written(api.convert_data(config), config.format, config.output_dir)


def _init(config: configs.InitConfig) -> None:
    api.generate_scenes(config)
    print(config.output_dir)


def _export(config: configs.ExportConfig) -> None:
    model = api.load(config.model)
    if config.output is not None:
        for note in api.export(model, config=replace(config, push_to_hub=None), quiet=False):
            print(f"Note: {note}", file=sys.stderr)
        print(config.output)
    if config.push_to_hub is not None:
        print(api.push_to_hub(model, config.push_to_hub, private=config.private))


def _review(config: configs.ReviewConfig) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), api.review_server(config) as server:
        if not server.is_loopback:
            warning = "other machines that know the address can change the boxes."
            print(f"Warning: {warning}", file=sys.stderr)
        print(server.url, flush=True)
        print("Press Ctrl-C to stop; decisions are saved.", file=sys.stderr)
        server.serve_forever()


def _demo(config: configs.DemoConfig) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with api.demo_page(config) as (page, is_loopback):
        if not is_loopback:
            print("Warning: other machines can use the page without a password.", file=sys.stderr)
        print(page.local_url, flush=True)
        print("Press Ctrl-C to stop.", file=sys.stderr)
        with redirect_stdout(sys.stderr):  # Gradio prints that it stops
            page.block_thread()


def _report(config: configs.ReportConfig) -> None:
    if len(config.runs) == 1:
        print(api.write_report(config=config))
        return
    for warning in api.compare_runs(config.runs, config.output):
        print(f"Warning: {warning}", file=sys.stderr)
    print(config.output)


def _models(config: configs.ModelsConfig) -> None:
    rows = [["name", "parameters", "backbone", "license", "description"]]
    for name, row in api.known_models().items():
        rows.append([name, f"{row['parameters']} M", row["backbone"], row["license"], row["summary"]])
    print(printing.table(rows))


def _env(config: configs.EnvConfig) -> None:
    print(printing.table(list(api.environment().items())))


class _Verb(NamedTuple):
    options: type
    run: Callable[[Any], int | None]  # returns an exit code, None for 0


_VERBS = {
    "train": _Verb(configs.TrainConfig, _train),
    "evaluate": _Verb(configs.EvaluateConfig, _evaluate),
    "blend": _Verb(configs.BlendConfig, _blend),
    "check": _Verb(configs.CheckConfig, _check),
    "convert": _Verb(configs.ConvertConfig, _convert),
    "init": _Verb(configs.InitConfig, _init),
    "predict": _Verb(configs.PredictConfig, _predict),
    "label": _Verb(configs.LabelConfig, _label),
    "review": _Verb(configs.ReviewConfig, _review),
    "demo": _Verb(configs.DemoConfig, _demo),
    "export": _Verb(configs.ExportConfig, _export),
    "report": _Verb(configs.ReportConfig, _report),
    "models": _Verb(configs.ModelsConfig, _models),
    "env": _Verb(configs.EnvConfig, _env),
}

if __name__ == "__main__":
    sys.exit(main())
