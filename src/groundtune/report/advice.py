"""Suggest what to do next, from the numbers of a run; each sentence states its evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from groundtune.data.check.names import count_boxes
from groundtune.data.sample import Dataset
from groundtune.report.run_data import RunData, score

_FEW_BOXES = 10
_MAX_SENTENCES = 8
_ERRORS = (  # error type, minimum number, minimum share of the correct detections, advice
    ("missed", 5, 1, "{count} boxes missed, {correct} detected. See them in the gallery (missed)."),
    ("classification", 3, 0.5, "{count} classification errors. Are the two names clearly different words?"),
    ("localization", 5, 0.5, "{count} localization errors. Are its boxes tight and consistent?"),
    ("background", 5, 0.5, "{count} detections on background. If they are correct, labels are missing."),
)


def advice(
    run: RunData, training: Dataset | None, class_names: Sequence[str], counts: Mapping[str, np.ndarray]
) -> list[str]:
    """Return sentences, the most useful first; none if nothing is conspicuous.

    `class_names` and `counts` (`error_counts`) are those of the validation split.
    """
    few = _few_boxes(run, training) if training is not None else []
    return [*_progress(run), *few, *_errors(class_names, counts)][:_MAX_SENTENCES]


def _progress(run: RunData) -> list[str]:
    scores = [(line["step"], score(line)) for line in run.evaluations[1:]]
    if len(scores) < 4:
        return []
    best_step, best = max(scores, key=lambda pair: pair[1])
    last_step, last = scores[-1]
    if best_step == last_step and last - scores[-2][1] >= 0.005:
        return [
            f"AP was still rising at the end ({best:.3f} at step {last_step}): train longer (--epochs or "
            "--min-steps)."
        ]
    if best - last > 0.02 and best_step < 0.7 * last_step:
        return [
            f"AP fell from {best:.3f} at step {best_step} to {last:.3f} at the end: the model overfits. The "
            "best weights were saved. More images help, or --multi-scale and --crop."
        ]
    return []


def _few_boxes(run: RunData, training: Dataset) -> list[str]:
    boxes = count_boxes(training)
    sentences = []
    for index in np.argsort(boxes, kind="stable"):
        name, count = training.class_names[index], int(boxes[index])
        ap = run.per_class.get(name, {}).get("AP")
        if count < _FEW_BOXES and (ap is None or ap < 0.5):
            boxes_text = f"{count} training {'box' if count == 1 else 'boxes'}"
            quality = "none in valid" if ap is None else f"AP {ap:.3f}"
            sentences.append(f"Class “{name}”: {boxes_text} ({quality}). Label more of them.")
    more = len(sentences) - 3
    others = [f"{more} more classes have fewer than {_FEW_BOXES} training boxes."] if more > 0 else []
    return sentences[:3] + others


def _errors(class_names: Sequence[str], counts: Mapping[str, np.ndarray]) -> list[str]:
    sentences = []
    for index, name in enumerate(class_names):
        correct = int(counts["matched"][index])
        for kind, minimum, share, text in _ERRORS:
            count = int(counts[kind][index])
            if count > max(minimum, correct * share):
                sentences.append(f"Class “{name}”: {text.format(count=count, correct=correct)}")
    return sentences
