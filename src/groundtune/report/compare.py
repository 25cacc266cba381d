"""Compare runs on one page, `comparison.html`: results, changed options, and AP by class.

Only the run directories are read. Runs that were evaluated on different images or classes are shown
under a warning.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from groundtune.errors import ConfigError
from groundtune.files import check_writable
from groundtune.progress import counted, format_metric
from groundtune.report.build import chart_series, write_page
from groundtune.report.figures import Series, line_chart
from groundtune.report.run_data import RunData, read_run, values_of_runs

_NUMBERS = ("AP", "AP50", "AP75", "recall@1", "recall@5")
_NOT_COMPARED = {"data", "model", "output_dir", "resume"}  # in the first table, or only a location


def build_comparison(folders: Sequence[Path], path: Path) -> list[str]:
    """Write the page; return warnings about runs that are not comparable.

    Raises:
        ConfigError: there are fewer than two runs, or the file is not writable.
        DataError: one is not a run directory, or its files are malformed.
    """
    if len(folders) < 2:
        raise ConfigError(f"runs: expected two or more run directories to compare, got {len(folders)}.")
    check_writable(path, "output")
    unique = len({folder.resolve().name for folder in folders}) == len(folders)
    runs = {folder.resolve().name if unique else str(folder): read_run(folder) for folder in folders}
    with values_of_runs(*folders):
        warnings = differing_validation(runs)
        context = {
            "title": f"{counted(len(runs), 'run')} compared",
            "warnings": warnings,
            "unfinished": [name for name, run in runs.items() if not run.finished],
            "names": list(runs),
            "headline": _headline(runs),
            "chart": line_chart(_curves(runs), "epoch"),
            "options": changed_options(runs),
            "classes": _classes(runs),
        }
        write_page(path, "comparison.html.jinja", context)
    return warnings


def differing_validation(runs: dict[str, RunData]) -> list[str]:
    """Return warnings about validation splits with different classes or numbers of images."""
    warnings = []
    counts = {name: run.valid_images for name, run in runs.items() if run.valid_images is not None}
    if len(set(counts.values())) > 1:
        numbers = ", ".join(f"{name} on {count}" for name, count in counts.items())
        warnings.append(f"The runs were evaluated on different numbers of images: {numbers}.")
    classes = {name: set(run.per_class) for name, run in runs.items() if run.per_class}
    first = next(iter(classes), "")
    for name, names in classes.items():
        missing, extra = sorted(classes[first] - names), sorted(names - classes[first])
        groups = {"lacks": missing, "adds": extra}
        parts = [f"{verb} {', '.join(group)}" for verb, group in groups.items() if group]
        if parts:
            warnings.append(f"The classes differ: compared with {first}, {name} {' and '.join(parts)}.")
    return warnings


def changed_options(runs: dict[str, RunData]) -> list[tuple[str, list[str]]]:
    """Return the options in which the runs differ: the name, and each run's value as JSON."""
    flat = [_flat(run.config) for run in runs.values()]
    texts = [{name: json.dumps(v, ensure_ascii=False) for name, v in config.items()} for config in flat]
    names = dict.fromkeys(name for options in texts for name in options if name not in _NOT_COMPARED)
    rows = [(name, [options.get(name, "-") for options in texts]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Return the options by dotted name, as `optimizer.lr`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def _headline(runs: dict[str, RunData]) -> dict[str, Any]:
    numbers = [name for name in _NUMBERS if any(f"valid/{name}" in run.best for run in runs.values())]
    rows = []
    for name, run in runs.items():
        best = [run.best.get(f"valid/{number}") for number in numbers]
        before = run.zero_shot.get(f"valid/{numbers[0]}") if numbers else None
        cost = [
            "-" if run.seconds is None else f"{run.seconds:.0f} s",
            "-" if run.memory_bytes is None else f"{run.memory_bytes / 2**20:.0f} MB",
            str(run.config.get("epochs", "-")),
        ]
        source = Path(str(run.config.get("model", "")))
        model = source.parent.name if source.name == "model" else source.name  # the model of a run directory
        data = Path(str(run.config.get("data", ""))).name
        rows.append([name, *map(format_metric, best), format_metric(before), *cost, model, data])
    before_title = " ".join(["zero-shot", *numbers[:1]])
    heads = ["run", *numbers, before_title, "time", "memory", "epochs", "model", "data"]
    return {"heads": heads, "rows": rows}


def _curves(runs: dict[str, RunData]) -> list[Series]:
    """Return the AP over epochs of each run; the first point is zero-shot."""
    curves: list[Series] = []
    for name, run in runs.items():
        [(_, _, values)] = chart_series(run.evaluations, ["AP"], "valid/")
        curves.append((name, [float(line.get("epoch", 0)) for line in run.evaluations], values))
    return curves


def _classes(runs: dict[str, RunData]) -> list[dict[str, Any]]:
    """Return for each class its AP in every run, which one is best, and the spread."""
    rows = []
    for name in dict.fromkeys(name for run in runs.values() for name in run.per_class):
        scores = [run.per_class.get(name, {}).get("AP") for run in runs.values()]
        known = [score for score in scores if score is not None]
        spread = format_metric(max(known) - min(known)) if len(known) > 1 else "-"
        best = max(known) if len(set(known)) > 1 else None
        cells = [(format_metric(score), score is not None and score == best) for score in scores]
        rows.append({"name": name, "cells": cells, "spread": spread})
    return rows
