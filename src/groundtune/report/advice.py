"""What to do next, drawn from a run's numbers; each sentence carries its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from groundtune.data.check.names import count_boxes
from groundtune.data.sample import Dataset
from groundtune.report.run_data import RunData, score

_FEW_BOXES = 10
_MOST = 8
_ERRORS = (  # kind, how many are few, and as a share of the detections that are right; what is said of more
    ("missed", 5, 1, "{number} boxes missed, {right} found. Look at them in the gallery (missed)."),
    ("class", 3, 0.5, "{number} detections are another class. Are the two names clearly different words?"),
    ("location", 5, 0.5, "{number} detections sit loosely. Are its boxes drawn tightly and alike?"),
    (
        "background",
        5,
        0.5,
        "{number} detections where no box is. If they are right, the labels are not complete.",
    ),
)


def advice(
    run: RunData, training: Dataset | None, class_names: Sequence[str], counts: Mapping[str, np.ndarray]
) -> list[str]:
    """Sentences, the most useful first; none where nothing stands out.

    `training` is None where that split cannot be read; class names and counts (`error_counts`) are those of valid.
    """
    few = _few_boxes(run, training) if training is not None else []
    return [*_progress(run), *few, *_errors(class_names, counts)][:_MOST]


def _progress(run: RunData) -> list[str]:
    scores = [(line["step"], score(line)) for line in run.evaluations[1:]]
    if len(scores) < 4:
        return []
    best_step, best = max(scores, key=lambda pair: pair[1])
    last_step, last = scores[-1]
    if best_step == last_step and last - scores[-2][1] >= 0.005:
        rising = f"AP was still rising at the end ({best:.3f} at step {last_step})"
        return [f"{rising}: train longer, --epochs or --min-steps."]
    if best - last > 0.02 and best_step < 0.7 * last_step:
        fell = f"AP fell from {best:.3f} at step {best_step} to {last:.3f} at the end: the model over-fits"
        return [f"{fell}. The best weights were kept; more images help, or --multi-scale and --crop."]
    return []


def _few_boxes(run: RunData, training: Dataset) -> list[str]:
    boxes = count_boxes(training)
    said = []
    for index in np.argsort(boxes, kind="stable"):
        name, count = training.class_names[index], int(boxes[index])
        ap = run.per_class.get(name, {}).get("AP")
        if count < _FEW_BOXES and (ap is None or ap < 0.5):
            found = f"{count} {'box' if count == 1 else 'boxes'} in training"
            said.append(
                f"Class “{name}”: {found} ({'none in valid' if ap is None else f'AP {ap:.3f}'}). Label more of it."
            )
    if len(said) > 3:
        return [*said[:3], f"{len(said) - 3} more classes have fewer than {_FEW_BOXES} boxes in training."]
    return said


def _errors(class_names: Sequence[str], counts: Mapping[str, np.ndarray]) -> list[str]:
    said = []
    for index, name in enumerate(class_names):
        right = int(counts["matched"][index])
        for kind, least, most_right, text in _ERRORS:
            number = int(counts[kind][index])
            if number > max(least, right * most_right):
                said.append(f"Class “{name}”: {text.format(number=number, right=right)}")
    return said
