"""One optimiser step: forward, loss in float32, backward, clip, AdamW, schedule, average.

The host waits for the device once, for the loss and the gradient norm: a step that is not finite must not reach the
optimiser (semantics 17).
"""

import math
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from groundtune.data.batch import Batch
from groundtune.engine.diagnosis import describe_bad_step, has_non_finite
from groundtune.engine.run import Place, Run
from groundtune.errors import TrainingDiverged
from groundtune.loss.criterion import total
from groundtune.loss.matcher import NonFiniteCost
from groundtune.model.detector import Output

_SHOWN_TERMS = ("loss_cls", "loss_bbox", "loss_giou")  # of the last layer, beside the whole loss


def optimiser_step(run: Run, batch: Batch, place: Place) -> tuple[dict[str, float], float, dict[str, Tensor]] | None:
    """One optimiser step.

    Returns:
        The loss and the terms that are shown, the norm of the gradient before clipping, and all terms, detached; None when
        the step was skipped.
    """
    features = None
    if run.train_features is not None:
        features = run.train_features.get(batch.pictures, batch.indices, batch.views, run.accelerator.device)
    outputs = run.model(batch, features)
    if not _finite_everywhere(run.accelerator, outputs):
        _skip(run, batch, features, place, "predictions of a process are not finite")
        return None
    try:
        terms = run.criterion(outputs, batch.targets, _normaliser(run.accelerator))
    except NonFiniteCost as error:
        _skip(run, batch, features, place, str(error))
        return None
    loss = total(terms)
    run.accelerator.backward(loss)
    norm = torch.nn.utils.get_total_norm([p.grad for p in run.parameters if p.grad is not None])
    shown = {"loss": loss} | {name: terms[name] for name in _SHOWN_TERMS}
    values = torch.stack([norm, *(value.detach() for value in shown.values())])
    if run.accelerator.num_processes > 1:  # the norm is the same in all of them already
        values = run.accelerator.reduce(values, reduction="mean")
    norm_value, *loss_values = values.tolist()
    losses = dict(zip(shown, loss_values, strict=True))
    if not (math.isfinite(losses["loss"]) and math.isfinite(norm_value)):
        _skip(run, batch, features, place, f"loss {losses['loss']:g}, gradient norm {norm_value:g}")
        return None
    if run.config.clip_grad > 0:
        torch.nn.utils.clip_grads_with_norm_(run.parameters, run.config.clip_grad, norm)
    run.optimizer.step()
    run.schedule.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.average is not None:
        run.average.update()
    place.bad_steps = 0
    return losses, norm_value, {name: term.detach() for name, term in terms.items()}


def _normaliser(accelerator: Accelerator) -> Callable[[Tensor], Tensor] | None:
    """The mean over processes for the criterion's box counts; DDP then averages the gradients (pitfall 8)."""
    if accelerator.num_processes == 1:
        return None
    return lambda counts: accelerator.reduce(counts, reduction="mean")


def _finite_everywhere(accelerator: Accelerator, outputs: Output) -> bool:
    """False if any process has a NaN: one that raised in the loss would leave the others waiting for its counts."""
    if accelerator.num_processes == 1:
        return True
    broken = torch.tensor(float(has_non_finite(outputs)), device=accelerator.device)
    return float(accelerator.reduce(broken, reduction="sum")) == 0


def _skip(run: Run, batch: Batch, features: list[list[Tensor]] | None, place: Place, reason: str) -> None:
    """Leaves a step out that was not finite, says where it began, and gives up after too many."""
    place.bad_steps += 1
    paths = [sample.image_path for sample in batch.samples]
    text = describe_bad_step(run.network, lambda: run.model(batch, features), paths, reason)
    for line in gather_object([text]):  # of every process
        run.say(line)
    run.optimizer.zero_grad(set_to_none=True)
    if place.bad_steps >= run.config.max_bad_steps:
        raise TrainingDiverged(
            f"{place.bad_steps} steps in a row were not finite, at step {place.step + 1} of epoch {place.epoch + 1} "
            f"({reason}). A lower learning rate or precision fp32 may help; the pictures and modules are in "
            f"{run.folder.path / 'train.log'}."
        )
