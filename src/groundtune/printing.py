"""What the verbs print as results: tables in plain text, whose names cannot command the terminal.

A report for people: the classes as the model reads them, findings with examples and what to do, and a verdict.

Everything fits the width of the terminal; long file names are shortened in the middle (JSON has them whole).
"""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from groundtune.data.check.run import SEVERITIES, Report, SplitFinding
from groundtune.errors import escape_control_chars
from groundtune.metrics.grounding import retention

if TYPE_CHECKING:
    from groundtune.data.check.run import Report
    from groundtune.data.formats.convert import Converted
    from groundtune.engine.train import RunResult
    from groundtune.predict.sources import Frame


_MAIN_METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf", "recall@1", "recall@5", "recall@10")


def class_table(classes: Sequence[Mapping[str, Any]]) -> str:
    """The classes as the model will read them: id and name in the data set, name in the prompt, tokens, boxes."""
    from groundtune.printing import class_rows, prompt_line

    return (
        f"{table(list(class_rows(classes)))}\n{prompt_line(classes)}"
        if classes
        else "No classes, but captions."
    )


def print_written(done: "Converted", format: str, out: str) -> None:
    """Images and boxes of a data set that was written, by split, and where it is."""
    rows = [[split, str(count), str(done.boxes[split])] for split, count in done.images.items()]
    print(table([[format, "images", "boxes"], *rows]))
    print(out)


def print_report(report: "Report") -> None:
    """What `check` found."""
    from rich.console import Console

    from groundtune.printing import class_rows, print_findings, print_prompt, print_summary, verdict

    console = Console(highlight=False, markup=False, emoji=False)
    if report.images:
        print_summary(report, console)
    if report.classes:
        print(f"\n{table(list(class_rows(report.classes)))}")
        print_prompt(report, console)
    print_findings(report, console)
    print(verdict(report))


def print_run(run: "RunResult") -> None:
    """A training run before and after, by metric and by class, and what was retained."""
    rows = [["valid", "zero-shot", "best", "gain"]]
    for name in _MAIN_METRICS:
        before, after = run.zero_shot.get(f"valid/{name}"), run.metrics.get(f"valid/{name}")
        if f"valid/{name}" in run.metrics:
            gain = "-" if before is None or after is None else f"{after - before:+.3f}"
            rows.append([name, share(before), share(after), gain])
    print(table(rows))
    if run.per_class:
        print(f"\n{per_class(run.per_class)}")
    if run.retention:
        print("\n" + "\n".join(_retained(name, numbers) for name, numbers in run.retention.items()))
    print(
        f"\n{run.seconds:.0f} s. The best weights are in {run.folder / 'model'}, everything else in {run.folder}."
    )


def _retained(name: str, numbers: Mapping[str, Mapping[str, float | None]]) -> str:
    metric, before, after, kept = retention(numbers)
    told = "" if kept is None else f" ({100 * kept:.0f} % kept)"
    return f"retained {name}: {metric} {share(before)} -> {share(after)}{told}"


def print_found(frame: "Frame", found: Sequence[Mapping[str, Any]]) -> None:
    """What was found in an image: class, score, box xyxy in its pixels."""
    place = (
        f"{frame.path} frame {frame.index} at {float(frame.time):.3f} s" if frame.video else str(frame.path)
    )
    print(f"{escape_control_chars(place.encode(errors='replace').decode())}: {len(found)} found")
    for one in found:
        print(f"  {one['class']}  {one['score']:.3f}  {' '.join(f'{x:.1f}' for x in one['box_xyxy'])}")


def per_class(scores_of: dict[str, dict[str, float | None]]) -> str:
    """AP and AP50 of each class."""
    rows = [[name, share(scores.get("AP")), share(scores.get("AP50"))] for name, scores in scores_of.items()]
    return table([["class", "AP", "AP50"], *rows])


def share(value: float | None) -> str:
    """A number between 0 and 1; "-" where there is none."""
    return "-" if value is None else f"{value:.3f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns: text to the left, numbers (and the headings over them) to the right."""
    rows = [[escape_control_chars(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    numeric = [all(_is_number(cell) for cell in column[1:]) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.replace(".", "", 1).lstrip("+-").isdigit()


_COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}
_NARROWEST, _WIDEST = 50, 110  # characters; longer lines are hard to read
_EXAMPLES = {"error": 5, "warning": 3, "note": 2}  # lines of a finding
_LONG_WORD = re.compile(r"([^\s/]{24})[^\s/]{6,}([^\s/]{14})")  # of file names
_MOST_CLASSES = 30
_LONGEST_PROMPT = 600  # characters


def print_summary(report: Report, console: Console) -> None:
    """Print in a line what was checked."""
    splits = ", ".join(f"{count:,} {name}" for name, count in report.images.items())
    images, boxes = sum(report.images.values()), sum(report.boxes.values())
    classes = f"{len(report.classes):,} classes" if report.classes else "captions in place of classes"
    _print(console, f"{report.data}: {images:,} images ({splits}), {boxes:,} boxes, {classes}", "bold")


def print_prompt(report: Report, console: Console) -> None:
    """Print the prompt, wrapped to the terminal."""
    for line in prompt_line(report.classes).splitlines():
        _print(console, line)


def print_findings(report: Report, console: Console) -> None:
    """Print the findings, errors first. Lines are wrapped to the terminal, at most 110 characters."""
    for severity, color in _COLORS.items():
        found = [located for located in report.findings if located.finding.severity == severity]
        if found:
            console.print()
            _print(console, f"{severity.capitalize()}s", f"bold {color}")
        for check in dict.fromkeys(located.finding.check for located in found):
            _print_check([located for located in found if located.finding.check == check], console)
    console.print()


def verdict(report: Report) -> str:
    """Say in a line what the report comes to."""
    counts = {severity: report.count(severity) for severity in SEVERITIES}
    told = ", ".join(f"{n} {severity}{'s' if n > 1 else ''}" for severity, n in counts.items() if n)
    if counts["error"]:
        return f"{told}. Training would stop on the error{'s' if counts['error'] > 1 else ''}."
    if counts["warning"]:
        return f"{told}. Training would run; look at the warning{'s' if counts['warning'] > 1 else ''} first."
    return f"No problems found in {sum(report.images.values()):,} images{f' ({told})' if told else ''}."


def class_rows(classes: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Rows of the table of classes, the first 30: id, name in the data set, name in the prompt, tokens, boxes."""
    first, *others = classes[0]["boxes"]
    yield ["id", "name", "in the prompt", "tokens", f"boxes in {first}", *others]
    for row in classes[:_MOST_CLASSES]:
        pieces = " ".join(row["tokens"])
        tokens = f"{len(row['tokens'])}" + (f": {pieces}" if pieces != row["prompt"] else "")
        texts = [textwrap.shorten(text, 40) for text in (row["name"], row["prompt"], tokens)]
        yield [str(row["id"]), *texts, *map(str, row["boxes"].values())]


def prompt_line(classes: Sequence[Mapping[str, Any]]) -> str:
    """What stands below that table: how many classes there are beyond it, and the prompt."""
    tokens = sum(len(row["tokens"]) + 1 for row in classes) + 2
    more = f"… and {len(classes) - _MOST_CLASSES:,} more classes\n" if len(classes) > _MOST_CLASSES else ""
    caption = " ".join(f"{row['prompt']}." for row in classes)
    if len(caption) > _LONGEST_PROMPT:
        caption = caption[:_LONGEST_PROMPT].rpartition(" ")[0] + " …"
    return f"{more}Prompt: {caption} ({tokens:,} tokens)"


def _print_check(group: Sequence[SplitFinding], console: Console) -> None:
    """Print what one check found in one or several splits: each split has its share of the examples."""
    first = group[0].finding
    counts = [
        f"{located.finding.count:,}{f' in {located.split}' if located.split else ''}" for located in group
    ]
    head = Text.assemble("  ", (first.check, f"bold {_COLORS[first.severity]}"), f"  {', '.join(counts)}")
    console.print(head, soft_wrap=True)
    _print(console, first.message[:1].upper() + first.message[1:], indent=4)
    share = max(1, _EXAMPLES[first.severity] // len(group))
    shown = [(located.split, example) for located in group for example in located.finding.examples[:share]]
    for split, example in shown:
        text = f"{split}/{example}" if len(group) > 1 else example
        _print(console, _LONG_WORD.sub(r"\1…\2", text), "dim", indent=6, hang=2)
    more = sum(located.finding.count for located in group) - len(shown)
    if shown and more > 0:
        _print(console, f"… and {more:,} more", "dim", indent=6)
    _print(console, f"→ {first.fix}", "green", indent=4, hang=2)


def _print(console: Console, text: str, style: str = "", indent: int = 0, hang: int = 0) -> None:
    width = min(max(console.width, _NARROWEST), _WIDEST)
    begin, later = " " * indent, " " * (indent + hang)
    for line in textwrap.wrap(
        text, width, initial_indent=begin, subsequent_indent=later, break_on_hyphens=False
    ):
        console.print(Text(line, style=style), soft_wrap=True)
