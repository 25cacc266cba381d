"""The line between a base and a fine-tuned model as a chart and a page, blend.html, and as blend.json."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from groundtune.engine.blend import ENOUGH_GAIN, BlendPoint
from groundtune.errors import CheckpointError
from groundtune.metrics.grounding import retention
from groundtune.report.build import share, write_page
from groundtune.report.figures import line_chart

RULE = (
    f"Chosen: of the points with {100 * ENOUGH_GAIN:.0f} % of the target's gain the one that kept most of the other data "
    "sets; without a gain the best harmonic mean; without other data sets the best score on the target."
)


def blend_chart(points: Sequence[BlendPoint]) -> str:
    """The scores on the target and on each other data set over the share of fine-tuning; an `<svg>` element."""
    at = [point.at for point in points]
    others = [
        (name, at, [_number(retention(point.retained[name])[2]) for point in points])
        for name in points[0].retained
    ]
    return line_chart(
        [("target", at, [point.score for point in points]), *others], "share of fine-tuning", (0.0, 1.0)
    )


def blend_rows(points: Sequence[BlendPoint], told: Callable[[float | None], str]) -> list[list[str]]:
    """A table of the points, its heads first; `told` writes a share."""
    rows = [["at", "target", "gain", *points[0].retained, "kept"]]
    for point in points:
        others = [retention(numbers)[2] for numbers in point.retained.values()]
        rows.append([f"{point.at:g}", *map(told, [point.score, point.gain, *others, point.kept])])
    return rows


def write_blend(
    points: Sequence[BlendPoint], best: BlendPoint, folder: Path, about: Mapping[str, str]
) -> None:
    """Write blend.json and blend.html into a folder that exists.

    Args:
        about: "base", "tuned" and "data", as the user named them.

    Raises:
        CheckpointError: the folder cannot be written to.
    """
    told = {**about, "chosen": best.at, "rule": RULE, "points": [asdict(point) for point in points]}
    heads, *rows = blend_rows(points, share)
    context = {
        "title": f"{about['tuned']} blended with {about['base']}",
        "rule": RULE,
        "heads": heads,
        "rows": [(row, point is best) for row, point in zip(rows, points, strict=True)],
        "chart": blend_chart(points),
    }
    try:
        (folder / "blend.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        write_page(folder / "blend.html", "blend.html.jinja", context)
    except OSError as error:
        raise CheckpointError(
            f"Cannot write blend.json and blend.html to {folder}: {error.strerror}."
        ) from error


def _number(value: float | None) -> float:
    return math.nan if value is None else value
