"""Models between a base and its fine-tuned child, on the straight line between their weights.

Wortsman et al., 2022 (WiSE-FT): along the line the target's AP often rises faster than the base's
knowledge is lost, so a model between the ends can have both. LoRA blends by its scale.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, harmonic_mean
from typing import Any

import torch
from torch import Tensor

from groundtune.data.sample import Dataset
from groundtune.engine.evaluate import Evaluation, Metrics, eval_task, run_task
from groundtune.errors import CheckpointError
from groundtune.metrics.grounding import retention
from groundtune.model.bundle import ModelBundle
from groundtune.model.checkpoint.convert import LABELS
from groundtune.model.detector import GroundingDINO
from groundtune.model.prompt_tuning import VECTORS

ENOUGH_GAIN = 0.9  # share of the target's gain; above it, retention decides

Weights = dict[str, Tensor]


@dataclass
class BlendPoint:
    """One model on the line."""

    alpha: float  # 0 is the base, 1 the fine-tuned model
    metrics: Metrics  # on the target
    # other data set → its metrics "before" (base) and "after" (this model)
    retention: dict[str, dict[str, Metrics]] = field(default_factory=dict)
    gain: float | None = None  # share of the fine-tuned model's gain on the target, if it gained
    retention_share: float | None = None  # mean share of the base's metrics on the others, if any

    @property
    def score(self) -> float:
        """AP on the target, or recall@1 of captions."""
        return self.metrics.get("AP", self.metrics.get("recall@1")) or 0.0


def blended(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> Weights:
    """Return the weights base + alpha·(tuned − base); at 0 and 1 the ends themselves, bit for bit.

    Unmerged LoRA adapters blend by their scale: B is scaled (it is 0 in the base), A is the tuned
    one. Label embeddings of other classes, which only training reads, are the tuned ones. Weights
    of prompt tuning that the base lacks count as 0.

    Raises:
        CheckpointError: they are not two states of one network.
    """
    base = {name: torch.zeros_like(tuned[name]) for name in tuned if name == VECTORS} | dict(base)
    other_labels = LABELS in base and LABELS in tuned and base[LABELS].shape != tuned[LABELS].shape
    differing = sorted(base.keys() ^ tuned.keys())
    for name in base.keys() & tuned.keys() - ({LABELS} if other_labels else set()):
        if base[name].shape != tuned[name].shape:
            differing.append(name)
    if differing:
        raise CheckpointError(
            f"The models cannot be blended: {len(differing)} weights are in one of them only or differ in "
            f"shape, for example {', '.join(differing[:3])}. Expected a model and what was fine-tuned from "
            "it."
        )

    def between(name: str) -> Tensor:
        if ".lora_A." in name or (name == LABELS and other_labels):
            return tuned[name].clone()
        if tuned[name].is_floating_point():  # exact at both ends, unlike base + 1·(…)
            return torch.lerp(base[name].to(tuned[name]), tuned[name], alpha)
        return (tuned if alpha > 0 else base)[name].clone()

    return {name: between(name) for name in tuned}


def measure_line(
    base: GroundingDINO,
    tuned: GroundingDINO,
    alphas: Sequence[float],
    measure: Callable[[], tuple[Evaluation, dict[str, Evaluation]]],
) -> list[BlendPoint]:
    """Evaluate the models at some positions, in order and always with the ends.

    `measure` evaluates `tuned`, which receives each point's weights, its own last, on the target
    and on the other data sets by name. Both networks are on one device. Errors are those of
    `blended`.
    """
    ends = base.state_dict(), {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    points: list[BlendPoint] = []
    before: dict[str, Metrics] | None = None
    for position in sorted({0.0, 1.0, *alphas}):
        tuned.load_state_dict(blended(*ends, position))
        target, others = measure()
        after = {name: evaluation.metrics for name, evaluation in others.items()}
        before = after if before is None else before
        retained = {name: {"before": before[name], "after": after[name]} for name in after}
        points.append(BlendPoint(position, target.metrics, retained))
    rise = points[-1].score - points[0].score
    for point in points:
        shares = [retention(metrics).share for metrics in point.retention.values()]
        known = [share for share in shares if share is not None]
        point.gain = (point.score - points[0].score) / rise if rise > 0 else None
        point.retention_share = fmean(known) if known else None
    return points


def best_point(points: Sequence[BlendPoint]) -> BlendPoint:
    """Choose the best compromise between the target and the other data sets.

    Of the points with 90 % of the target's gain, the one with the best retention. If fine-tuning
    gained nothing, the best harmonic mean of target score and retention. Without other data sets,
    the best target score.
    """
    if any(point.retention_share is None for point in points):
        return max(points, key=lambda point: point.score)
    enough = [point for point in points if point.gain is not None and point.gain >= ENOUGH_GAIN]
    if enough:
        return max(enough, key=lambda point: (point.retention_share, point.score))
    return max(points, key=lambda point: harmonic_mean([point.score, point.retention_share or 0.0]))


def best_blend(
    base: ModelBundle,
    tuned: ModelBundle,
    alphas: Sequence[float],
    dataset: Dataset,
    retention_data: Mapping[str, Dataset],
    precision: str,
    **settings: Any,
) -> tuple[list[BlendPoint], BlendPoint]:
    """Evaluate the points between two models, and give `tuned` the weights of the best one.

    `retention_data` are the data sets that measure forgetting, by name; `settings` are
    `batch_size`, `device`, `precision` and `progress` of `evaluate`. Returns all points in order,
    and the best one.
    """

    def measure() -> tuple[Evaluation, dict[str, Evaluation]]:
        return score(dataset), {name: score(other) for name, other in retention_data.items()}

    def score(data: Dataset) -> Evaluation:
        return run_task(eval_task(tuned, data, None, precision), data, **settings)

    networks = base.detector.to(settings["device"]), tuned.detector.to(settings["device"])
    points = measure_line(*networks, alphas, measure)
    best = best_point(points)
    weights = base.detector.state_dict(), tuned.detector.state_dict()
    tuned.detector.load_state_dict(blended(*weights, best.alpha))
    return points, best
