"""What to do next, drawn from a run's numbers; each sentence carries its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from groundtune.data.sample import Dataset
from groundtune.report.run_data import RunData

_FEW_BOXES = 10
_MOST = 8


def advice(
    run: RunData, training: Dataset | None, class_names: Sequence[str], counts: Mapping[str, np.ndarray]
) -> list[str]:
    """Sentences, the most useful first; none where nothing stands out.

    Args:
        run: the run.
        training: its training split; None where it cannot be read.
        class_names: of the validation split.
        counts: of `metrics.errors.error_counts`.
    """
    said = _progress(run)
    if training is not None:
        said += _few_boxes(run, training)
    said += _errors(class_names, counts)
    return said[:_MOST]


def _progress(run: RunData) -> list[str]:
    scores = [(line["step"], line.get("valid/AP") or 0.0) for line in run.evaluations[1:]]
    if len(scores) < 4:
        return []
    best_step, best = max(scores, key=lambda pair: pair[1])
    last_step, last = scores[-1]
    if best_step == last_step:
        return [
            f"AP was still rising at the end ({best:.3f} at step {last_step}): train longer, --epochs or --min-steps."
        ]
    if best - last > 0.02 and best_step < 0.7 * last_step:
        return [
            f"AP fell from {best:.3f} at step {best_step} to {last:.3f} at the end: the model over-fits. The best weights "
            "were kept; more pictures help, or --multi-scale and --crop."
        ]
    return []


def _few_boxes(run: RunData, training: Dataset) -> list[str]:
    boxes = np.bincount(
        np.concatenate([s.class_ids[~s.crowd] for s in training.samples] or [np.zeros(0, int)]).astype(int),
        minlength=len(training.class_names),
    )
    said = []
    for index in np.argsort(boxes, kind="stable"):
        name, count = training.class_names[index], int(boxes[index])
        ap = run.per_class.get(name, {}).get("AP")
        if count < _FEW_BOXES and (ap is None or ap < 0.5):
            found = f"AP {ap:.3f}" if ap is not None else "none in valid"
            plural = "box" if count == 1 else "boxes"
            said.append(f"Class “{name}”: {count} {plural} in training ({found}). Label more of it.")
    if len(said) > 3:
        return [*said[:3], f"{len(said) - 3} more classes have fewer than {_FEW_BOXES} boxes in training."]
    return said


def _errors(class_names: Sequence[str], counts: Mapping[str, np.ndarray]) -> list[str]:
    said = []
    for index, name in enumerate(class_names):
        right = int(counts["matched"][index])
        missed, wrong = int(counts["missed"][index]), int(counts["class"][index])
        loose, ghosts = int(counts["location"][index]), int(counts["background"][index])
        if missed > max(5, right):
            said.append(f"Class “{name}”: {missed} boxes missed, {right} found. Look at them in the gallery (missed).")
        if wrong > max(3, right // 2):
            said.append(
                f"Class “{name}”: {wrong} detections are another class. Are the two names clearly different words?"
            )
        if loose > max(5, right // 2):
            said.append(f"Class “{name}”: {loose} detections sit loosely. Are its boxes drawn tightly and alike?")
        if ghosts > max(5, right // 2):
            said.append(
                f"Class “{name}”: {ghosts} detections where no box is. If they are right, the labels are not complete."
            )
    return said
