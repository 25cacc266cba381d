"""What the verbs print as results: tables in plain text, whose names cannot command the terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from groundtune.errors import harmless
from groundtune.metrics.retention import retention

if TYPE_CHECKING:
    from groundtune.data.check.report import Report
    from groundtune.data.formats.convert import Converted
    from groundtune.engine.train import RunResult
    from groundtune.media import Shot

_MAIN_METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf", "recall@1", "recall@5", "recall@10")


def class_table(classes: Sequence[Mapping[str, Any]]) -> str:
    """The classes as the model will read them: id and name in the data set, name in the prompt, tokens, boxes."""
    from groundtune.data.check.text import class_rows, prompt_line

    return f"{table(list(class_rows(classes)))}\n{prompt_line(classes)}" if classes else "No classes, but captions."


def print_written(done: "Converted", format: str, out: str) -> None:
    """Pictures and boxes of a data set that was written, by split, and where it is."""
    rows = [[split, str(count), str(done.boxes[split])] for split, count in done.pictures.items()]
    print(table([[format, "pictures", "boxes"], *rows]))
    print(out)


def print_report(report: "Report") -> None:
    """What `check` found."""
    from rich.console import Console

    from groundtune.data.check.text import class_rows, print_findings, print_prompt, print_summary, verdict

    console = Console(highlight=False, markup=False, emoji=False)
    if report.pictures:
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
    if run.retained:
        print("\n" + "\n".join(_retained(name, numbers) for name, numbers in run.retained.items()))
    print(f"\n{run.seconds:.0f} s. The best weights are in {run.folder / 'model'}, everything else in {run.folder}.")


def _retained(name: str, numbers: Mapping[str, Mapping[str, float | None]]) -> str:
    metric, before, after, kept = retention(numbers)
    told = "" if kept is None else f" ({100 * kept:.0f} % kept)"
    return f"retained {name}: {metric} {share(before)} -> {share(after)}{told}"


def print_found(shot: "Shot", found: Sequence[Mapping[str, Any]]) -> None:
    """What was found in a picture: class, score, box xyxy in its pixels."""
    place = f"{shot.path} frame {shot.frame} at {float(shot.time):.3f} s" if shot.clip else str(shot.path)
    print(f"{harmless(place.encode(errors='replace').decode())}: {len(found)} found")
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
    rows = [[harmless(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    numeric = [all(_is_number(cell) for cell in column[1:]) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.replace(".", "", 1).lstrip("+-").isdigit()
