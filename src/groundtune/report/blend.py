"""Write the results of a blend: blend.json, and blend.html with a chart and a table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from groundtune.engine.blend import ENOUGH_GAIN, BlendPoint
from groundtune.errors import CheckpointError
from groundtune.metrics.grounding import retention
from groundtune.progress import format_metric
from groundtune.report.build import write_page
from groundtune.report.figures import line_chart

RULE = (
    f"The chosen point: among those with {100 * ENOUGH_GAIN:.0f} % of the gain on the target, the one that "
    "retains most of the other data sets; without a gain, the best harmonic mean; without other data sets, "
    "the best score on the target."
)


def blend_chart(points: Sequence[BlendPoint]) -> str:
    """Draw the scores on the target and the other data sets over alpha, as an `<svg>` element."""
    alphas = [point.alpha for point in points]
    others = []
    for name in points[0].retention:
        after = [retention(point.retention[name]).after for point in points]
        others.append((name, alphas, [math.nan if value is None else value for value in after]))
    return line_chart([("target", alphas, [point.score for point in points]), *others], "alpha", (0.0, 1.0))


def blend_rows(points: Sequence[BlendPoint]) -> list[list[str]]:
    """Return a table of the points, with a header row."""
    rows = [["alpha", "target", "gain", *points[0].retention, "retention"]]
    for point in points:
        others = [retention(numbers).after for numbers in point.retention.values()]
        numbers = [point.score, point.gain, *others, point.retention_share]
        rows.append([f"{point.alpha:g}", *map(format_metric, numbers)])
    return rows


def write_blend(
    points: Sequence[BlendPoint], best: BlendPoint, folder: Path, about: Mapping[str, str]
) -> None:
    """Write blend.json and blend.html into a directory; a `CheckpointError` if it is not writable.

    `about` has "base", "tuned" and "data", as the user named them.
    """
    record = {**about, "chosen": best.alpha, "rule": RULE, "points": [asdict(point) for point in points]}
    heads, *rows = blend_rows(points)
    context = {
        "title": f"{about['tuned']} blended with {about['base']}",
        "rule": RULE,
        "heads": heads,
        "rows": [(row, point is best) for row, point in zip(rows, points, strict=True)],
        "chart": blend_chart(points),
    }
    try:
        (folder / "blend.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        write_page(folder / "blend.html", "blend.html.jinja", context)
    except OSError as error:
        what = f"Cannot write blend.json and blend.html to {folder}"
        raise CheckpointError(f"{what}: {error.strerror}.") from error
