"""Models between a base and its fine-tuned child, on the straight line of their weights (Wortsman et al., 2022, WiSE-FT).

Along the line the target's AP often rises faster than what the base knew is lost, so that a point between the ends has both.
LoRA lies on the same line: a part of its scale is that part of the difference.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from groundtune.data.sample import Dataset
from groundtune.engine.evaluate import Evaluation, evaluate
from groundtune.errors import CheckpointError
from groundtune.metrics.grounding import retention
from groundtune.model.bundle import ModelBundle
from groundtune.model.checkpoint.convert import LABELS
from groundtune.model.detector import GroundingDINO
from groundtune.model.prompt_tuning import VECTORS

ENOUGH_GAIN = 0.9  # of the target's, for which the rest is given away in favor of what was known

Weights = dict[str, Tensor]
Metrics = dict[str, float | None]


@dataclass
class BlendPoint:
    """One model of the line.

    Attributes:
        at: 0 is the base, 1 the fine-tuned model.
        metrics: on the target; shares.
        retained: of each other data set its metrics "before" (of the base) and "after" (of this model).
        gain: the part of the fine-tuned model's gain on the target that this one has; None where there was none.
        kept: the part of the base's numbers on the other data sets that it has, their mean; None without such sets.
    """

    at: float
    metrics: Metrics
    retained: dict[str, dict[str, Metrics]] = field(default_factory=dict)
    gain: float | None = None
    kept: float | None = None

    @property
    def score(self) -> float:
        return self.metrics.get("AP", self.metrics.get("recall@1")) or 0.0


def blended(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], at: float) -> Weights:
    """The weights base + at·(tuned − base); at 0 and 1 the ends themselves, bit for bit.

    Adapters that are not merged blend by their scale: their B counts so much (it is 0 in the base), A stays the tuned one.
    Denoising labels of other classes than the base's, which only training reads, are the tuned ones at any point.

    Args:
        base, tuned: by the same names, of the same shapes; the base may lack the offsets of prompt tuning, which are 0 there.
        at: in [0, 1].

    Raises:
        CheckpointError: they are not two states of one network.
    """
    base = {name: torch.zeros_like(tuned[name]) for name in tuned if name == VECTORS} | dict(base)
    labels = (
        {LABELS}
        if LABELS in base and LABELS in tuned and base[LABELS].shape != tuned[LABELS].shape
        else set()
    )
    wrong = sorted(base.keys() ^ tuned.keys())
    wrong += [n for n in base.keys() & tuned.keys() - labels if base[n].shape != tuned[n].shape]
    if wrong:
        raise CheckpointError(
            f"The models cannot be blended, {len(wrong)} weights are in one of them only or differ in shape, for example "
            f"{', '.join(wrong[:3])}. Expected a model and what was fine-tuned from it."
        )
    return {name: _between(name, base[name], tuned[name], at, name in labels) for name in tuned}


def _between(name: str, base: Tensor, tuned: Tensor, at: float, labels: bool) -> Tensor:
    if labels or ".lora_A." in name:
        return tuned.clone()
    if tuned.is_floating_point():  # lerp is exact at both ends, base + 1·(tuned − base) is not
        return torch.lerp(base.to(tuned), tuned, at)
    return (tuned if at > 0 else base).clone()


def measure_line(
    base: GroundingDINO,
    tuned: GroundingDINO,
    at: Sequence[float],
    measure: Callable[[], tuple[Evaluation, dict[str, Evaluation]]],
) -> list[BlendPoint]:
    """Measure the points of a line, and always its ends, in order.

    Args:
        base, tuned: the ends, on one device. `tuned` takes each point's weights in turn, its own last.
        at: points between them.
        measure: evaluates `tuned` as it is on the target, and on the other data sets, by name.

    Raises:
        CheckpointError: as `blended`.
    """
    ends = base.state_dict(), {name: tensor.clone() for name, tensor in tuned.state_dict().items()}
    points: list[BlendPoint] = []
    for share in sorted({0.0, 1.0, *at}):
        tuned.load_state_dict(blended(*ends, share))
        target, others = measure()
        before = (
            points[0].retained
            if points
            else {name: {"after": found.metrics} for name, found in others.items()}
        )
        retained = {n: {"before": before[n]["after"], "after": found.metrics} for n, found in others.items()}
        points.append(BlendPoint(share, target.metrics, retained))
    rise = points[-1].score - points[0].score
    for point in points:
        shares = [retention(numbers)[3] for numbers in point.retained.values()]
        known = [share for share in shares if share is not None]
        point.gain = (point.score - points[0].score) / rise if rise > 0 else None
        point.kept = fmean(known) if known else None
    return points


def best_point(points: Sequence[BlendPoint]) -> BlendPoint:
    """The point to keep.

    Of those with 90 % of the target's gain the one that kept most of the other data sets. Where fine-tuning gained nothing:
    the best harmonic mean of the target's score and the kept share. Without other data sets: the best score on the target.
    """
    if any(point.kept is None for point in points):
        return max(points, key=lambda point: point.score)
    enough = [point for point in points if point.gain is not None and point.gain >= ENOUGH_GAIN]
    if enough:
        return max(enough, key=lambda point: (point.kept, point.score))
    return max(points, key=lambda point: _harmonic(point.score, point.kept or 0.0))


def _harmonic(a: float, b: float) -> float:
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


def best_blend(
    base: ModelBundle,
    tuned: ModelBundle,
    alphas: Sequence[float],
    dataset: Dataset,
    retained: Mapping[str, Dataset],
    **settings: Any,
) -> tuple[list[BlendPoint], BlendPoint]:
    """Evaluate the points between two models, and give `tuned` the weights of the best one.

    Args:
        dataset: the data set of the fine-tuning.
        retained: the data sets that measure forgetting, by name.
        settings: `batch_size`, `device`, `precision` and `progress` of `evaluate`.

    Returns:
        All points in order, and the best one.
    """

    def measure() -> tuple[Evaluation, dict[str, Evaluation]]:
        target = evaluate(tuned, dataset, **settings)
        return target, {name: evaluate(tuned, other, **settings) for name, other in retained.items()}

    networks = base.network.to(settings["device"]), tuned.network.to(settings["device"])
    points = measure_line(*networks, alphas, measure)
    best = best_point(points)
    weights = base.network.state_dict(), tuned.network.state_dict()
    tuned.network.load_state_dict(blended(*weights, best.at))
    return points, best
