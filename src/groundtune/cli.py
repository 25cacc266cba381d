"""The `groundtune` command: one verb per dataclass of `config.py`. Results on stdout, progress and errors on stderr.

The parsers are made from the dataclasses, and values stay strings until `options.resolve`, so that every mistake of a
command line is reported at once. `--help` does not import torch.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from groundtune import __version__
from groundtune.config import CheckConfig, ConvertConfig, EvaluateConfig, ExportConfig, PredictConfig, TrainConfig
from groundtune.errors import ConfigError, DataError, GroundtuneError
from groundtune.options import COMMAND_LINE, flag_of, leaf_fields, resolve, suggestion
from groundtune.progress import Progress

if TYPE_CHECKING:
    from groundtune.data.check.report import Report
    from groundtune.data.sample import Dataset
    from groundtune.engine.train import RunResult
    from groundtune.model.bundle import ModelBundle

_PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class _Verb:
    run: Callable[[dict[str, Any]], int | None]  # an exit code, None is 0
    help: str
    usage: str = ""
    options: type | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: the arguments; None takes the process's own.

    Returns:
        The exit code. Errors of the user have been printed in words; anything else is a fault of ours and is raised.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments or bool(os.environ.get("GROUNDTUNE_DEBUG"))
    try:
        return _run([argument for argument in arguments if argument != "--debug"])
    except GroundtuneError as error:
        if debug:
            raise
        print(f"groundtune: error: {error}", file=sys.stderr)
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
    parser, verbs = _parsers()
    if not arguments:
        parser.print_help(sys.stderr)
        return ConfigError.exit_code
    try:
        verb, values = _parse(arguments, parser, verbs)
    except SystemExit as finished:  # --help and --version
        return int(finished.code or 0)
    code = _VERBS[verb].run(values)
    sys.stdout.flush()
    return code or 0


class _Parser(argparse.ArgumentParser):
    """One line per mistake, instead of a usage of forty options (pitfall 32)."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. See {self.prog} --help.")


def _parse(arguments: list[str], parser: _Parser, verbs: dict[str, _Parser]) -> tuple[str, dict[str, Any]]:
    """The verb, and the values that were given, by the names of the options."""
    verb = arguments[0]
    if verb.startswith("-"):
        parser.parse_args(arguments)
    if verb not in verbs:
        raise ConfigError(f"there is no command {verb!r}.{suggestion(verb, verbs)} See groundtune --help.")
    # The verb's parser is called directly, and "intermixed": otherwise options before an optional DATA would hide it.
    values, unknown = verbs[verb].parse_known_intermixed_args(arguments[1:])
    options = [argument.partition("=")[0] for argument in unknown if argument.startswith("-")]
    if options:
        near = suggestion(options[0], verbs[verb]._option_string_actions)
        raise ConfigError(f"there is no option {options[0]}.{near} See groundtune {verb} --help.")
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is one argument too many. See groundtune {verb} --help.")
    return verb, vars(values)


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(
        prog="groundtune",
        description="Fine-tune Grounding DINO on your own boxes.",
        epilog="Exit codes: 0 ok, 2 options, 3 data, 4 model, 5 training diverged, 130 interrupted. "
        "Every command takes --debug, which shows the traceback of an error.",
    )
    parser.add_argument("--version", action="version", version=f"groundtune {__version__}")
    places = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)
    verbs = {}
    for name, verb in _VERBS.items():
        usage = f"groundtune {name}{verb.usage}"
        verbs[name] = places.add_parser(name, usage=usage, help=verb.help, description=verb.help, allow_abbrev=False)
        if verb.options is not None:
            _add_options(verbs[name], verb.options)
    verbs["train"].add_argument(
        "--config", metavar="FILE", help="YAML file of options, param_groups too", default=argparse.SUPPRESS
    )
    verbs["train"].epilog = "The model's recipe may have other defaults. It < the YAML file < the command line."
    return parser, verbs


def _add_options(parser: _Parser, options: type) -> None:
    """Add an options class's fields; values stay strings, and those that are not given stay away."""
    groups: dict[str, Any] = {"": parser}
    for name, field in leaf_fields(options).items():
        known = field.metadata
        if not known or not known["flag"]:
            continue
        if known["group"] not in groups:
            groups[known["group"]] = parser.add_argument_group(known["group"])
        add = groups[known["group"]].add_argument
        kind = str(field.type)
        help_text = known["help"].replace("%", "%%")
        if isinstance(field.default, bool):
            help_text += f" (default: {'on' if field.default else 'off'})"
        elif isinstance(field.default, int | float | str):
            help_text += f" (default: {field.default})"
        if known["positional"]:
            nargs = "*" if "list" in kind else "?"  # never required here: `resolve` says what is missing
            add(name, metavar=name.upper(), nargs=nargs, help=help_text, default=argparse.SUPPRESS)
        elif isinstance(field.default, bool):
            switch = argparse.BooleanOptionalAction
            add(flag_of(name, field), dest=name, action=switch, help=help_text, default=argparse.SUPPRESS)
        elif "dict" in kind:
            metavar, action = "NAME=OTHER", "append"  # one pair for each use of the option
            add(
                flag_of(name, field),
                dest=name,
                metavar=metavar,
                action=action,
                help=help_text,
                default=argparse.SUPPRESS,
            )
        else:
            metavar = next((letter for word, letter in _METAVARS.items() if word in kind), "VALUE")
            add(flag_of(name, field), dest=name, metavar=metavar, help=help_text, default=argparse.SUPPRESS)


def _train(values: dict[str, Any]) -> None:
    from groundtune.api import resolve_training, run_training
    from groundtune.data.check.run import describe_classes

    file = values.pop("config", None)
    config = resolve_training(values, Path(file) if file else None, where=COMMAND_LINE)
    progress = Progress()

    def announce(out: Path, splits: dict[str, "Dataset"], bundle: "ModelBundle") -> None:
        for dataset in splits.values():
            for message in dataset.messages:
                progress.message(message)
        progress.message(_class_table(describe_classes(splits, bundle.tokenizer)))
        progress.message(f"Run folder: {out}")

    _print_run(run_training(config, progress, announce=announce))


def _class_table(classes: Sequence[Mapping[str, Any]]) -> str:
    """The classes as the model will read them: id and name in the data set, name in the prompt, tokens, boxes."""
    from groundtune.data.check.text import class_rows, prompt_line

    return f"{_table(list(class_rows(classes)))}\n{prompt_line(classes)}" if classes else "No classes, but captions."


def _check(values: dict[str, Any]) -> int:
    config = resolve(CheckConfig, [(COMMAND_LINE, values)])
    from groundtune.api import run_check

    report = run_check(config, Progress())
    if config.json:
        print(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        _print_report(report)
    failed = report.count("error") or (config.strict and report.count("warning"))
    return DataError.exit_code if failed else 0


def _convert(values: dict[str, Any]) -> None:
    config = resolve(ConvertConfig, [(COMMAND_LINE, values)])
    from groundtune.data.formats.convert import convert

    done = convert(Path(config.data), Path(config.out), config.format, link=config.link)
    for message in done.messages:
        print(message, file=sys.stderr)
    rows = [[split, str(count), str(done.boxes[split])] for split, count in done.pictures.items()]
    print(_table([[config.format, "pictures", "boxes"], *rows]))
    print(config.out)


def _print_report(report: "Report") -> None:
    from rich.console import Console

    from groundtune.data.check.text import class_rows, print_findings, print_prompt, print_summary, verdict

    console = Console(highlight=False, markup=False, emoji=False)
    if report.pictures:
        print_summary(report, console)
    if report.classes:
        print(f"\n{_table(list(class_rows(report.classes)))}")
        print_prompt(report, console)
    print_findings(report, console)
    print(verdict(report))


def _print_run(run: "RunResult") -> None:
    rows = [["valid", "zero-shot", "best"]]
    measured = [name for name in _MAIN_METRICS if f"valid/{name}" in run.metrics]
    rows += [[k, _share(run.zero_shot.get(f"valid/{k}")), _share(run.metrics.get(f"valid/{k}"))] for k in measured]
    print(_table(rows))
    if run.per_class:
        print(f"\n{_per_class(run.per_class)}")
    print(f"\n{run.seconds:.0f} s. The best weights are in {run.folder / 'model'}, everything else in {run.folder}.")


def _evaluate(values: dict[str, Any]) -> None:
    config = resolve(EvaluateConfig, [(COMMAND_LINE, values)])
    out = Path(config.out) if config.out else None
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise ConfigError(f"out: {out} cannot be written; name a file in a folder that exists.")
    from groundtune import api

    _set_threads(config.threads)
    progress = Progress()
    try:
        found = api.evaluate(
            config.model,
            config.data,
            split=config.split,
            classes=config.classes or None,
            rename=config.rename,
            batch_size=config.batch_size,
            device=config.device,
            precision=config.precision,
            progress=progress,
        )
    finally:
        progress.close()
    if out is not None:
        out.write_text(json.dumps(found.predictions), encoding="utf-8")
    if config.json:
        print(json.dumps({"split": config.split, "metrics": found.metrics, "per_class": found.per_class}, indent=2))
        return
    print(_table([[config.split, ""], *([name, _share(value)] for name, value in found.metrics.items())]))
    if found.per_class:
        print(f"\n{_per_class(found.per_class)}")


def _predict(values: dict[str, Any]) -> None:
    config = resolve(PredictConfig, [(COMMAND_LINE, values)])
    paths = _picture_paths(config.images)
    from groundtune import api
    from groundtune.predict import records_of, save_predictions

    _set_threads(config.threads)
    model = api.load(config.model, device=config.device)
    model.precision = config.precision
    names = api.prompt_names(config.classes, model.bundle)
    found = model.predict(list(paths), names, config.threshold, config.batch_size)
    if config.save is not None:
        save_predictions(paths, found, names, Path(config.save))
    listed = [records_of(part) for part in found]
    if config.json:
        content = [{"image": str(path), "detections": part} for path, part in zip(paths, listed, strict=True)]
        print(json.dumps(content, indent=2))
    else:
        for path, part in zip(paths, listed, strict=True):
            print(f"{path}: {len(part)} found")
            for one in part:
                print(f"  {one['class']}  {one['score']:.3f}  {' '.join(f'{x:.1f}' for x in one['box_xyxy'])}")
    if config.save is not None:
        print(f"The pictures with boxes and predictions.json are in {config.save}.", file=sys.stderr)


def _picture_paths(images: Sequence[str]) -> list[Path]:
    """The picture files that were named, and those in the folders that were named."""
    paths: list[Path] = []
    problems = []
    for path in map(Path, images):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in _PICTURE_SUFFIXES)
            problems += [] if inside else [f"{path}: the folder has no pictures"]
            paths += inside
        elif path.is_file():
            paths.append(path)
        else:
            problems.append(f"{path}: there is no such picture")
    if problems or not paths:
        raise DataError("; ".join(problems) + "." if problems else "images: name at least one picture.")
    return paths


def _export(values: dict[str, Any]) -> None:
    config = resolve(ExportConfig, [(COMMAND_LINE, values)])
    if config.out is None and config.push_to_hub is None:
        raise ConfigError("out: missing; name a folder or file to write, or a model on the Hub with --push-to-hub.")
    if config.push_to_hub is not None and config.format != "hf":
        raise ConfigError("push_to_hub: only --format hf can be uploaded.")
    from groundtune import api

    model = api.load(config.model)
    if config.out is not None:
        for note in api.export(model, config.out, format=config.format):
            print(f"Note: {note}", file=sys.stderr)
        print(config.out)
    if config.push_to_hub is not None:
        print(api.push_to_hub(model, config.push_to_hub, private=config.private))


def _models(_: dict[str, Any]) -> None:
    from groundtune.model.bundle import presets

    rows = [["name", "trained", "width", "layers", "queries", "picture", "licence", ""]]
    for name, preset in presets().items():
        sizes = preset["model"]
        layers = f"{sizes['encoder_layers']}+{sizes['decoder_layers']}"
        trained = "yes" if preset.get("trained", False) else "no"
        picture = f"{preset['picture']['short_side']} px"
        summary = preset.get("summary", "")
        rows.append(
            [
                name,
                trained,
                str(sizes["d_model"]),
                layers,
                str(sizes["num_queries"]),
                picture,
                preset["licence"],
                summary,
            ]
        )
    print(_table(rows))


def _env(_: dict[str, Any]) -> None:
    from groundtune.environment import describe

    print(_table(list(describe().items())))


def _set_threads(threads: int) -> None:
    if threads:
        import torch

        torch.set_num_threads(threads)


def _per_class(per_class: dict[str, dict[str, float | None]]) -> str:
    rows = [[name, _share(scores.get("AP")), _share(scores.get("AP50"))] for name, scores in per_class.items()]
    return _table([["class", "AP", "AP50"], *rows])


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: text to the left, numbers (and the headings over them) to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    numeric = [all(_is_number(cell) for cell in column[1:]) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.replace(".", "", 1).removeprefix("-").isdigit()


_METAVARS = {"list": "A,B", "int": "N", "float": "X"}
_MAIN_METRICS = ("AP", "AP50", "AP75", "recall@1", "recall@5", "recall@10")
_VERBS = {
    "train": _Verb(
        _train, "fine-tune a model on a folder of pictures with boxes", " DATA [--model MODEL] [options]", TrainConfig
    ),
    "evaluate": _Verb(_evaluate, "measure a model's COCO AP on a data set", " MODEL DATA [options]", EvaluateConfig),
    "check": _Verb(_check, "look for what is wrong with a data set", " DATA [options]", CheckConfig),
    "convert": _Verb(
        _convert, "write a data set in another format", " DATA OUT --format coco|yolo|voc|odvg [--link]", ConvertConfig
    ),
    "predict": _Verb(_predict, "find objects by name in pictures", " MODEL IMAGES... [options]", PredictConfig),
    "export": _Verb(
        _export, "write a model for other tools", " MODEL --format hf|idea --out PATH [options]", ExportConfig
    ),
    "models": _Verb(_models, "list the built-in models"),
    "env": _Verb(_env, "show versions and the machine, for results and bug reports"),
}

if __name__ == "__main__":
    sys.exit(main())
