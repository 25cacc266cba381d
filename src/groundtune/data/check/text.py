"""A report for people: the classes as the model reads them, findings with examples and what to do, and a verdict.

Everything fits the width of the terminal; long file names are shortened in the middle (JSON has them whole).
"""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from groundtune.data.check.report import SEVERITIES, Located, Report

_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}
_NARROWEST, _WIDEST = 50, 110  # characters; longer lines are hard to read
_EXAMPLES = {"error": 5, "warning": 3, "note": 2}  # lines of a finding
_LONG_WORD = re.compile(r"([^\s/]{24})[^\s/]{6,}([^\s/]{14})")  # of file names
_MOST_CLASSES = 30
_LONGEST_PROMPT = 600  # characters


def print_summary(report: Report, console: Console) -> None:
    """Print in a line what was checked."""
    splits = ", ".join(f"{count:,} {name}" for name, count in report.pictures.items())
    pictures, boxes = sum(report.pictures.values()), sum(report.boxes.values())
    classes = f"{len(report.classes):,} classes" if report.classes else "captions in place of classes"
    _print(console, f"{report.data}: {pictures:,} pictures ({splits}), {boxes:,} boxes, {classes}", "bold")


def print_prompt(report: Report, console: Console) -> None:
    """Print the prompt, wrapped to the terminal."""
    for line in prompt_line(report.classes).splitlines():
        _print(console, line)


def print_findings(report: Report, console: Console) -> None:
    """Print the findings, errors first. Lines are wrapped to the terminal, at most 110 characters."""
    for severity, colour in _COLOURS.items():
        found = [located for located in report.findings if located.finding.severity == severity]
        if found:
            console.print()
            _print(console, f"{severity.capitalize()}s", f"bold {colour}")
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
    return f"No problems found in {sum(report.pictures.values()):,} pictures{f' ({told})' if told else ''}."


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


def _print_check(group: Sequence[Located], console: Console) -> None:
    """Print what one check found in one or several splits: each split has its share of the examples."""
    first = group[0].finding
    counts = [f"{located.finding.count:,}{f' in {located.split}' if located.split else ''}" for located in group]
    head = Text.assemble("  ", (first.check, f"bold {_COLOURS[first.severity]}"), f"  {', '.join(counts)}")
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
    for line in textwrap.wrap(text, width, initial_indent=begin, subsequent_indent=later, break_on_hyphens=False):
        console.print(Text(line, style=style), soft_wrap=True)
