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

_HEADINGS = {"error": "Errors", "warning": "Warnings", "note": "Notes"}
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}
_WIDEST = 110  # characters; longer lines are hard to read
_NARROWEST = 50
_EXAMPLES = {"error": 5, "warning": 3, "note": 2}  # lines of a finding
_LONGEST_WORD = 44  # characters, of file names
_MOST_CLASSES = 30
_LONGEST_PROMPT = 600  # characters


def print_summary(report: Report, console: Console) -> None:
    """Print in a line what was checked."""
    splits = ", ".join(f"{count:,} {name}" for name, count in report.pictures.items())
    pictures, boxes = sum(report.pictures.values()), sum(report.boxes.values())
    classes = f"{len(report.classes):,} classes" if report.classes else "captions in place of classes"
    line = f"{report.data}: {pictures:,} pictures ({splits}), {boxes:,} boxes, {classes}"
    _print(console, line, "bold")


def print_prompt(report: Report, console: Console) -> None:
    """Print the prompt, wrapped to the terminal."""
    for line in prompt_line(report.classes).splitlines():
        _print(console, line)


def print_findings(report: Report, console: Console) -> None:
    """Print the findings, errors first. Lines are wrapped to the terminal, at most 110 characters."""
    for severity in SEVERITIES:
        group = [located for located in report.findings if located.finding.severity == severity]
        if group:
            console.print()
            _print(console, _HEADINGS[severity], f"bold {_COLOURS[severity]}")
        for check in dict.fromkeys(located.finding.check for located in group):
            _print_check([located for located in group if located.finding.check == check], console)
    console.print()


def verdict(report: Report) -> str:
    """Say in a line what the report comes to."""
    counts = {severity: report.count(severity) for severity in SEVERITIES}
    told = [f"{n} {severity}{'s' if n > 1 else ''}" for severity, n in counts.items() if n]
    if counts["error"]:
        return f"{', '.join(told)}. Training would stop on the error{'s' if counts['error'] > 1 else ''}."
    if counts["warning"]:
        return (
            f"{', '.join(told)}. Training would run; look at the warning{'s' if counts['warning'] > 1 else ''} first."
        )
    pictures = f"{sum(report.pictures.values()):,} pictures"
    return f"No problems found in {pictures}" + (f" ({', '.join(told)})." if told else ".")


def class_rows(classes: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """Rows of the table of classes, the first 30: id, name in the data set, name in the prompt, tokens, boxes."""
    splits = list(classes[0]["boxes"])
    heads = [f"boxes in {name}" if index == 0 else name for index, name in enumerate(splits)]
    yield ["id", "name", "in the prompt", "tokens", *heads]
    for row in classes[:_MOST_CLASSES]:
        boxes = [str(row["boxes"][name]) for name in splits]
        pieces = " ".join(row["tokens"])
        whole = pieces == row["prompt"]
        tokens = f"{len(row['tokens'])}" if whole else f"{len(row['tokens'])}: {pieces}"
        yield [str(row["id"]), *(textwrap.shorten(text, 40) for text in (row["name"], row["prompt"], tokens)), *boxes]


def prompt_line(classes: Sequence[Mapping[str, Any]]) -> str:
    """What stands below that table: how many classes there are beyond it, and the prompt."""
    tokens = sum(len(row["tokens"]) + 1 for row in classes) + 2
    more = f"… and {len(classes) - _MOST_CLASSES:,} more classes\n" if len(classes) > _MOST_CLASSES else ""
    caption = " ".join(f"{row['prompt']}." for row in classes)
    if len(caption) > _LONGEST_PROMPT:
        caption = caption[:_LONGEST_PROMPT].rpartition(" ")[0] + " …"
    return f"{more}Prompt: {caption} ({tokens:,} tokens)"


def _print_check(findings: Sequence[Located], console: Console) -> None:
    """Print what one check found in one or several splits."""
    first = findings[0].finding
    counts = [f"{located.finding.count:,}{f' in {located.split}' if located.split else ''}" for located in findings]
    head = Text.assemble("  ", (first.check, f"bold {_COLOURS[first.severity]}"), f"  {', '.join(counts)}")
    console.print(head, soft_wrap=True)
    message = first.message if len({located.finding.message for located in findings}) == 1 else ""
    _print(console, (message or first.message)[:1].upper() + (message or first.message)[1:], indent=4)
    shown = _examples(findings, max(_EXAMPLES[first.severity], len(findings)))
    for example in shown:
        _print(console, re.sub(rf"[^\s/]{{{_LONGEST_WORD},}}", _shortened, example), "dim", indent=6, hang=2)
    more = sum(located.finding.count for located in findings) - len(shown)
    if shown and more > 0:
        _print(console, f"… and {more:,} more", "dim", indent=6)
    _print(console, f"→ {first.fix}", "green", indent=4, hang=2)


def _examples(findings: Sequence[Located], limit: int) -> list[str]:
    """The first few examples, as many from each split as there is room for."""
    several = len(findings) > 1
    turns = [
        [f"{located.split}/{example}" if several else example for example in located.finding.examples]
        for located in findings
    ]
    share = max(1, limit // len(findings))
    return [example for turn in turns for example in turn[:share]]


def _shortened(match: re.Match[str]) -> str:
    word = match[0]
    return f"{word[: _LONGEST_WORD - 20]}…{word[-14:]}"


def _print(console: Console, text: str, style: str = "", indent: int = 0, hang: int = 0) -> None:
    width = min(max(console.width, _NARROWEST), _WIDEST)
    begin, later = " " * indent, " " * (indent + hang)
    for line in textwrap.wrap(text, width, initial_indent=begin, subsequent_indent=later, break_on_hyphens=False):
        console.print(Text(line, style=style), soft_wrap=True)
