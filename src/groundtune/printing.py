"""Print the results of commands: tables in plain text, with control characters escaped.

Lines of a report are wrapped to the terminal. Long file names are shortened in the middle.
"""

import json
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from groundtune.errors import DataError, escape_control_chars
from groundtune.progress import counted, format_metric

if TYPE_CHECKING:
    from rich.console import Console

    from groundtune.data.check.run import Report, SplitFinding
    from groundtune.data.formats.convert import Converted
    from groundtune.engine.train import RunResult

Severity = Literal["error", "warning", "note"]

_MAIN_METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf", "recall@1", "recall@5", "recall@10")
_COLORS: dict[Severity, str] = {"error": "red", "warning": "yellow", "note": "cyan"}
_EXAMPLES = {"error": 5, "warning": 3, "note": 2}  # lines of a finding
_MIN_WIDTH, _MAX_WIDTH = 50, 110  # characters; longer lines are hard to read
_MAX_CLASSES = 30
_MAX_CELL = 200  # characters
_MAX_PROMPT = 600  # characters
_LONG_WORD = re.compile(r"([^\s/]{24})[^\s/]{6,}([^\s/]{14})")  # of file names


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns: text to the left, numbers and their headings to the right."""
    rows = [[_in_one_line(cell) for cell in row] for row in rows]
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    numeric = [all(map(_is_number, column[1:])) for column in columns]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _in_one_line(text: str) -> str:
    """Return a name or another short text as a terminal shows it."""
    text = escape_control_chars(text).replace("\n", "\\n")
    return text if len(text) <= _MAX_CELL else f"{text[: _MAX_CELL - 1]}…"


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.replace(".", "", 1).lstrip("+-").isdigit()


def class_scores(per_class: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return the table of AP and AP50 by class."""
    names = ("AP", "AP50")
    rows = [[name, *(format_metric(scores.get(n)) for n in names)] for name, scores in per_class.items()]
    return table([["class", *names], *rows])


def print_run(
    run: "RunResult", retained: Sequence[tuple[str, str, float | None, float | None, float | None]]
) -> None:
    """Print a training run: metrics before and after, by class, and retention."""
    rows = [["valid", "zero-shot", "best", "gain"]]
    for name in _MAIN_METRICS:
        if f"valid/{name}" in run.metrics:
            before, after = run.zero_shot.get(f"valid/{name}"), run.metrics[f"valid/{name}"]
            gain = "-" if before is None or after is None else f"{after - before:+.3f}"
            rows.append([name, format_metric(before), format_metric(after), gain])
    print(table(rows))
    if run.per_class:
        print(f"\n{class_scores(run.per_class)}")
    lines = []
    for name, metric, before, after, share in retained:
        percent = "" if share is None else f" ({100 * share:.0f} %)"
        lines.append(f"retention {name}: {metric} {format_metric(before)} -> {format_metric(after)}{percent}")
    if lines:
        print("\n" + "\n".join(lines))
    print(f"\n{run.seconds:.0f} s. Best weights: {run.folder / 'model'}. Run directory: {run.folder}.")


def print_predictions(predictions: Iterable[Mapping[str, Any]], as_json: bool) -> list[str]:
    """Print predictions as they come, and return the paths of the files that cannot be read."""
    unreadable, separator = [], "[\n"
    try:
        for prediction in predictions:
            if "error" in prediction:
                unreadable.append(prediction["image"])
            elif as_json:
                sys.stdout.write(separator + json.dumps(prediction))
                separator = ",\n"
            else:
                _print_detections(prediction)
    finally:
        if as_json:
            print("\n]" if separator == ",\n" else "[\n\n]")
    return unreadable


def _print_detections(prediction: Mapping[str, Any]) -> None:
    """Print the detections of an image: class, score, and box xyxy in pixels."""
    detections = prediction["detections"]
    frame = f" frame {prediction['frame']} at {prediction['seconds']:.3f} s" if "frame" in prediction else ""
    name = f"{prediction['image']}{frame}".encode(errors="replace").decode()
    print(f"{escape_control_chars(name)}: {counted(len(detections), 'detection')}")
    for found in detections:
        box = " ".join(f"{x:.1f}" for x in found["box_xyxy"])
        print(f"  {_in_one_line(found['class'])}  {found['score']:.3f}  {box}")


def print_skipped(paths: Sequence[str]) -> int:
    """Print which files could not be read, and return the exit code."""
    if not paths:
        return 0
    head = f"{counted(len(paths), 'file')} could not be read completely:"
    print("groundtune:", escape_control_chars("\n  ".join([head, *paths])), file=sys.stderr)
    return DataError.exit_code


def print_written(written: "Converted", format: str, folder: str) -> None:
    """Print the messages, the images and boxes by split, and the directory of a data set."""
    for message in written.messages:
        print(message, file=sys.stderr)
    rows = [[split, str(count), str(written.boxes[split])] for split, count in written.images.items()]
    print(table([[format, "images", "boxes"], *rows]))
    print(folder)


def class_table(classes: Sequence[Mapping[str, Any]]) -> str:
    """Return the first 30 classes as the model reads them, and the prompt."""
    if not classes:
        return "No classes, but captions."
    first, *others = classes[0]["boxes"]
    rows = [["id", "name", "in the prompt", "tokens", f"boxes in {first}", *others]]
    for row in classes[:_MAX_CLASSES]:
        pieces = " ".join(row["tokens"])
        tokens = f"{len(row['tokens'])}" + (f": {pieces}" if pieces != row["prompt"] else "")
        texts = [textwrap.shorten(text, 40) for text in (row["name"], row["prompt"], tokens)]
        rows.append([str(row["id"]), *texts, *map(str, row["boxes"].values())])
    more = len(classes) - _MAX_CLASSES
    lines = [table(rows), f"… and {counted(more, 'more class')}"] if more > 0 else [table(rows)]
    return "\n".join([*lines, _prompt_line(classes)])


def _prompt_line(classes: Sequence[Mapping[str, Any]]) -> str:
    prompt = " ".join(f"{row['prompt']}." for row in classes)
    if len(prompt) > _MAX_PROMPT:
        prompt = prompt[:_MAX_PROMPT].rpartition(" ")[0] + " …"
    tokens = sum(len(row["tokens"]) + 1 for row in classes) + 2
    return f"Prompt: {prompt} ({tokens:,} tokens)"


def print_report(report: "Report") -> None:
    """Print summary, classes, findings with examples and fixes, and verdict of a data set."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    images, boxes = sum(report.images.values()), sum(report.boxes.values())
    if report.images:
        splits = ", ".join(f"{count:,} {name}" for name, count in report.images.items())
        classes = counted(len(report.classes), "class") if report.classes else "captions instead of classes"
        counts = f"{counted(images, 'image')} ({splits}), {counted(boxes, 'box')}, {classes}"
        _print(console, f"{report.data}: {counts}", "bold")
    if report.classes:
        *lines, prompt = class_table(report.classes).splitlines()
        print("\n" + "\n".join(lines))
        _print(console, prompt)
    for severity, color in _COLORS.items():
        found = [located for located in report.findings if located.finding.severity == severity]
        if found:
            console.print()
            _print(console, f"{severity.capitalize()}s", f"bold {color}")
        for check in dict.fromkeys(located.finding.check for located in found):
            _print_check([located for located in found if located.finding.check == check], console)
    console.print()
    print(_verdict({severity: report.count(severity) for severity in _COLORS}, images))


def _verdict(counts: Mapping[Severity, int], images: int) -> str:
    """Summarize the findings in a line."""
    summary = ", ".join(counted(number, severity) for severity, number in counts.items() if number)
    if counts["error"]:
        return f"{summary}. Training would stop on the error{'s' if counts['error'] > 1 else ''}."
    if counts["warning"]:
        return (
            f"{summary}. Training would run; look at the warning{'s' if counts['warning'] > 1 else ''} first."
        )
    return f"No problems found in {counted(images, 'image')}{f' ({summary})' if summary else ''}."


def _print_check(group: Sequence["SplitFinding"], console: "Console") -> None:
    """Print the findings of one check, which share the lines of examples among the splits."""
    from rich.text import Text

    first = group[0].finding
    counts = [f"{part.finding.count:,}{f' in {part.split}' if part.split else ''}" for part in group]
    head = Text.assemble("  ", (first.check, f"bold {_COLORS[first.severity]}"), f"  {', '.join(counts)}")
    console.print(head, soft_wrap=True)
    _print(console, first.message[:1].upper() + first.message[1:], indent=4)
    share = max(1, _EXAMPLES[first.severity] // len(group))
    examples = [(part.split, example) for part in group for example in part.finding.examples[:share]]
    for split, example in examples:
        text = f"{split}/{example}" if len(group) > 1 else example
        _print(console, _LONG_WORD.sub(r"\1…\2", text), "dim", indent=6, hang=2)
    more = sum(part.finding.count for part in group) - len(examples)
    if examples and more > 0:
        _print(console, f"… and {more:,} more", "dim", indent=6)
    _print(console, f"→ {first.fix}", "green", indent=4, hang=2)


def _print(console: "Console", text: str, style: str = "", indent: int = 0, hang: int = 0) -> None:
    from rich.text import Text

    width = min(max(console.width, _MIN_WIDTH), _MAX_WIDTH)
    begin, later = " " * indent, " " * (indent + hang)
    lines = textwrap.wrap(text, width, initial_indent=begin, subsequent_indent=later, break_on_hyphens=False)
    for line in lines:
        console.print(Text(line, style=style), soft_wrap=True)
