"""One optimiser step: forward, loss in float32, backward, clip, AdamW, schedule, average.

A step's pictures are shared out over the processes, and each computes its share in micro-batches. All terms are divided by
the numbers of the whole batch, so that losses and gradients simply add up: over micro-batches in place, over processes in
one reduction at the end. Until then no process waits for another, so one that runs out of memory, meets a NaN or has no
picture at all can say so first, and all do the same: repeat the step in smaller parts, leave it out, or take it.

Deviation from the usual way (`DistributedDataParallel`): it reduces gradients during the backward pass, which saves a
little time, and leaves the others waiting when a process fails there.

The host waits for the device once, for the loss and the gradient norm: a step that is not finite must not reach the
optimiser (semantics 17).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor

from groundtune.data.batch import Batch
from groundtune.device import is_out_of_memory, release_memory
from groundtune.engine import checkpoint
from groundtune.engine.diagnosis import describe_bad_step
from groundtune.engine.run import Place, Run
from groundtune.engine.unreadable import leave_out
from groundtune.errors import OutOfMemory, TrainingDiverged
from groundtune.loss.criterion import BatchCounts, total
from groundtune.loss.matcher import NonFiniteCost
from groundtune.model.detector import Output

_SHOWN_TERMS = ("loss_cls", "loss_bbox", "loss_giou")  # of the last layer, beside the whole loss


class _Outcome(NamedTuple):
    """How a process got on with its share of a step."""

    names: list[str]  # of its terms; none without a picture
    not_finite: str = ""  # what
    too_large: str = ""  # the pictures that memory had no room for together, and what it said


def optimiser_step(run: Run, batch: Batch, place: Place) -> tuple[dict[str, float], float, dict[str, Tensor]] | None:
    """One optimiser step.

    Args:
        batch: this process's share; it may be empty.

    Returns:
        The loss and the terms that are shown, the norm of the gradient before clipping, and all terms, detached, of the
        whole batch; None when the step was skipped, since it was not finite or none of its pictures can be read.

    Raises:
        DataError: too many pictures cannot be read.
        OutOfMemory: there is no memory for a single picture.
        TrainingDiverged: too many steps in a row were not finite.
    """
    whole, largest_share = _whole_batch(run, batch)
    if not whole.boxes:
        return None
    random_state = checkpoint.random_state()
    while True:
        micro_batch = min(limit for limit in (run.config.micro_batch, place.micro_batch, largest_share) if limit)
        parts = batch.split(micro_batch)
        terms, own = _add_gradients(run, parts, whole)
        outcomes: list[_Outcome] = gather_object([own])
        too_large = next((outcome.too_large for outcome in outcomes if outcome.too_large), "")
        if not too_large:
            break
        _halve(run, place, micro_batch, too_large)
        checkpoint.set_random_state(random_state)
    if any(outcome.not_finite for outcome in outcomes):
        _skip(run, parts, whole, place, own.not_finite or "the numbers of another process are not finite")
        return None
    terms = _over_processes(run, terms, max((outcome.names for outcome in outcomes), key=len))
    loss = total(terms)
    norm = torch.nn.utils.get_total_norm([p.grad for p in run.parameters if p.grad is not None])
    shown = {"loss": loss} | {name: terms[name] for name in _SHOWN_TERMS}
    norm_value, *loss_values = torch.stack([norm, *shown.values()]).tolist()
    losses = dict(zip(shown, loss_values, strict=True))
    if not (math.isfinite(losses["loss"]) and math.isfinite(norm_value)):
        _skip(run, parts, whole, place, f"loss {losses['loss']:g}, gradient norm {norm_value:g}")
        return None
    if run.config.clip_grad > 0:
        torch.nn.utils.clip_grads_with_norm_(run.parameters, run.config.clip_grad, norm)
    run.optimizer.step()
    run.schedule.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.average is not None:
        run.average.update()
    place.bad_steps = 0
    return losses, norm_value, terms


def _whole_batch(run: Run, batch: Batch) -> tuple[BatchCounts, int]:
    """What is in the shares of all processes, and the most pictures of one; those that cannot be read are told."""
    own = (
        [len(target.boxes_cxcywh) for target in batch.targets],
        int(batch.text.text_token_mask.sum()),
        batch.unreadable,
    )
    shares: list[tuple[list[int], int, dict[str, str]]] = gather_object([own])
    leave_out(run, run.loader.dataset, {path: why for *_, found in shares for path, why in found.items()})
    boxes = [count for counts, _, _ in shares for count in counts]
    return BatchCounts(boxes, sum(tokens for _, tokens, _ in shares)), max(len(counts) for counts, _, _ in shares)


def _add_gradients(run: Run, parts: Sequence[Batch], whole: BatchCounts) -> tuple[dict[str, Tensor], _Outcome]:
    """Forward and backward of each part; what is not finite or does not fit ends it, and is told in place of raised."""
    sums: dict[str, Tensor] = {}
    for part in parts:
        try:
            terms = _backward(run, part, whole)
        except NonFiniteCost as error:
            paths = ", ".join(str(part.samples[image].image_path) for image in error.image_indices)
            return {}, _Outcome([], not_finite=f"the matching cost is not finite for {paths}")
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            sizes = ", ".join(f"{width} × {height}" for height, width in part.sizes_hw)
            reason = str(error).split("\n")[0] or type(error).__name__
            return {}, _Outcome([], too_large=f"pictures at a time: {len(part.targets)} ({sizes} pixels; {reason})")
        sums = {name: term + sums[name] if sums else term for name, term in terms.items()}
    return sums, _Outcome(list(sums))


def _backward(run: Run, part: Batch, whole: BatchCounts) -> dict[str, Tensor]:
    part = part.to(run.accelerator.device)
    terms = run.criterion(_forward(run, part, whole), part.targets, whole)
    run.accelerator.backward(total(terms))
    return {name: term.detach() for name, term in terms.items()}


def _forward(run: Run, part: Batch, whole: BatchCounts) -> Output:
    features = None
    if run.train_features is not None:
        features = run.train_features.get(part.pictures, part.indices, part.views, run.accelerator.device)
    output: Output = run.model(part, features, max(whole.boxes))
    return output


def _over_processes(run: Run, terms: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Adds gradients and terms over processes, in one reduction. A parameter that none has a gradient of keeps none."""
    if run.accelerator.num_processes == 1:
        return terms
    zero = torch.zeros((), device=run.accelerator.device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in run.parameters]
    present = torch.tensor([float(p.grad is not None) for p in run.parameters], device=zero.device)
    values = torch.stack([terms.get(name, zero) for name in names])
    flat = torch.cat([values, present, *(gradient.flatten() for gradient in gradients)])
    torch.distributed.all_reduce(flat)
    values, present, *sums = flat.split([len(values), len(present), *(gradient.numel() for gradient in gradients)])
    for parameter, gradient, count in zip(run.parameters, sums, present.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter) if count else None
    return dict(zip(names, values, strict=True))


def _halve(run: Run, place: Place, micro_batch: int, too_large: str) -> None:
    """Makes the micro-batch smaller, for this step and all later ones."""
    run.optimizer.zero_grad(set_to_none=True)
    release_memory()
    where = f"Out of memory in step {place.step + 1}, {too_large}"
    fixes = "--short-side, --recompute or --precision bf16"
    if micro_batch == 1:
        raise OutOfMemory(
            f"{where}. There is no smaller part of a step: use less memory with {fixes}, or another machine. What was saved "
            f"before is whole in {run.folder.path / 'checkpoints'}."
        )
    place.micro_batch = micro_batch // 2
    run.say(
        f"{where}: from now on {place.micro_batch} at a time, for the same optimiser step and losses, but slower. "
        f"Less memory is needed with {fixes}."
    )


def _skip(run: Run, parts: Sequence[Batch], whole: BatchCounts, place: Place, reason: str) -> None:
    """Leaves a step out that was not finite, says where it began, and gives up after too many."""
    place.bad_steps += 1
    paths = [sample.image_path for part in parts for sample in part.samples]
    device = run.accelerator.device
    text = describe_bad_step(
        run.network, lambda: [_forward(run, part.to(device), whole) for part in parts], paths, reason
    )
    for line in gather_object([text] if parts else []):  # of every process that has pictures
        run.say(line)
    run.optimizer.zero_grad(set_to_none=True)
    if place.bad_steps >= run.config.max_bad_steps:
        raise TrainingDiverged(
            f"{place.bad_steps} steps in a row were not finite, at step {place.step + 1} of epoch {place.epoch + 1} "
            f"({reason}). A lower learning rate or precision fp32 may help; the pictures and modules are in "
            f"{run.folder.path / 'train.log'}."
        )
