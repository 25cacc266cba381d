"""One optimizer step: forward, loss in float32, backward, gradient clipping, AdamW, schedule, EMA.

The processes share the images of a step, and each computes its share in micro-batches. All terms
are divided by the counts of the whole batch, so losses and gradients simply add up: over
micro-batches in place, over processes in one reduction at the end. Until then no process waits for
another: one that runs out of memory, meets a NaN or has no image can report it first, and all do
the same: repeat the step in smaller parts, skip it, or take it. (`DistributedDataParallel` reduces
during the backward pass, which saves a little time and leaves the others waiting if one fails.)

The host waits for a GPU twice per step: for the matching costs of each micro-batch, and for the
loss and the gradient norm, because a step that is not finite must not reach the optimizer. In bf16
and fp16 it is computed again in float32 before it is skipped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor

from groundtune.contracts import Output
from groundtune.data.batch import Batch
from groundtune.device import REDUCED, autocast, is_out_of_memory, release_memory
from groundtune.engine import checkpoint, optim
from groundtune.engine.distributed import share
from groundtune.engine.nonfinite import describe_bad_step
from groundtune.engine.setup import TrainSetup, TrainState
from groundtune.engine.validate import skip_unreadable
from groundtune.errors import OutOfMemory, TrainingDiverged, first_line
from groundtune.loss.criterion import BatchCounts, total
from groundtune.loss.matcher import NonFiniteCost

_SHOWN_TERMS = ("loss_cls", "loss_bbox", "loss_giou")  # of the last decoder layer


@dataclass
class StepResult:
    """Numbers of a finished step, of the whole batch."""

    losses: dict[str, float]  # "loss" and the terms of the last decoder layer
    grad_norm: float  # before clipping
    terms: dict[str, Tensor]  # all terms of the loss, detached
    lr: dict[str, float]  # learning rate of the step by parameter group


class _Outcome(NamedTuple):
    """What became of a process's share of a step."""

    terms: Sequence[str] = ()  # names; none without an image
    gradients: Sequence[bool] = ()  # of each parameter whether it has one
    not_finite: str = ""  # what is not finite
    out_of_memory: str = ""  # the images that did not fit, and the error


def optimizer_step(setup: TrainSetup, state: TrainState, batch: Batch) -> StepResult | None:
    """Take one optimizer step with this process's share of a batch, which may be empty.

    Returns:
        Its numbers; None if the step was skipped: it is not finite, or has no readable image.

    Raises:
        DataError: too many images cannot be read.
        OutOfMemory: a single image does not fit into memory.
        TrainingDiverged: too many steps in a row are not finite.
    """
    counts, largest_share = _count_batch(setup, state, batch)
    if not counts.boxes:
        return None
    result, parts = _compute_gradients(setup, state, batch, counts, largest_share)
    if isinstance(result, str):
        _skip_step(setup, state, parts, counts, result)
    if not isinstance(result, StepResult):
        return None
    optim.update_weights(setup.optimizer, state.step + 1)
    setup.schedule.step()
    setup.optimizer.zero_grad(set_to_none=True)
    if setup.average is not None:
        setup.average.update()
    state.bad_steps = 0
    return result


def _compute_gradients(
    setup: TrainSetup, state: TrainState, batch: Batch, counts: BatchCounts, largest_share: int
) -> tuple[StepResult | str | None, list[Batch]]:
    """Compute the clipped gradients: in smaller parts without memory, in float32 if bf16 fails.

    Returns:
        The numbers of the step (or what is not finite; None: fp16's scale), and its micro-batches.
    """
    precision, random_state = setup.config.precision, checkpoint.random_state()
    while True:
        limits = (setup.config.micro_batch_size, state.micro_batch_size, largest_share)
        micro_batch_size = min(limit for limit in limits if limit)
        parts = batch.split(micro_batch_size)
        terms, outcome = _add_gradients(setup, parts, counts, precision)
        outcomes = share(outcome)
        out_of_memory = next((other.out_of_memory for other in outcomes if other.out_of_memory), "")
        if out_of_memory:
            _halve_micro_batch(setup, state, micro_batch_size, out_of_memory)
        else:
            result: StepResult | str | None
            if any(other.not_finite for other in outcomes):
                result = outcome.not_finite or "the numbers of another process are not finite"
            else:
                result = _finish_gradients(setup, terms, outcomes, precision)
            if precision not in REDUCED or not isinstance(result, str):
                return result, parts
            setup.optimizer.zero_grad(set_to_none=True)
            if not state.float32_steps:
                setup.log(
                    f"Step {state.step + 1} is not finite in {precision} ({result}): it is computed again in "
                    "float32, as will be others like it."
                )
            precision = "fp32"
            state.float32_steps += 1
        checkpoint.set_random_state(random_state)


def _finish_gradients(
    setup: TrainSetup, terms: dict[str, Tensor], outcomes: Sequence[_Outcome], precision: str
) -> StepResult | str | None:
    """Add and clip the gradients of all processes; return as `_compute_gradients`."""
    terms = _reduce(setup, terms, outcomes)
    if precision == "fp16":
        setup.scaler.unscale_(setup.optimizer)
    norm = torch.nn.utils.get_total_norm([p.grad for p in setup.parameters if p.grad is not None])
    shown = {"loss": total(terms)} | {name: terms[name] for name in _SHOWN_TERMS}
    grad_norm, *values = torch.stack([norm, *shown.values()]).tolist()
    losses = dict(zip(shown, values, strict=True))
    if precision == "fp16" and optim.update_scale(setup.scaler, losses["loss"], grad_norm):
        setup.folder.log(f"Overflow in fp16: the loss scale is now {setup.scaler.get_scale():g}.")
        setup.optimizer.zero_grad(set_to_none=True)
        return None
    if not (math.isfinite(losses["loss"]) and math.isfinite(grad_norm)):
        return f"loss {losses['loss']:g}, gradient norm {grad_norm:g}"
    if setup.config.max_grad_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(setup.parameters, setup.config.max_grad_norm, norm)
    return StepResult(losses, grad_norm, terms, {g["name"]: g["lr"] for g in setup.optimizer.param_groups})


def _count_batch(setup: TrainSetup, state: TrainState, batch: Batch) -> tuple[BatchCounts, int]:
    """Return the counts of the whole batch and the largest number of images of a process."""
    boxes = [len(target.boxes_cxcywh) for target in batch.targets]
    tokens = int(batch.text.text_token_mask.sum())
    shares = share((boxes, tokens, batch.unreadable))
    unreadable = {path: reason for _, _, paths in shares for path, reason in paths.items()}
    skip_unreadable(setup, state, setup.loader.dataset, unreadable)
    counts = BatchCounts([n for boxes, _, _ in shares for n in boxes], sum(tokens for _, tokens, _ in shares))
    return counts, max(len(boxes) for boxes, _, _ in shares)


def _add_gradients(
    setup: TrainSetup, parts: Sequence[Batch], counts: BatchCounts, precision: str
) -> tuple[dict[str, Tensor], _Outcome]:
    """Run forward and backward of each part; return, not raise, what went wrong."""
    sums: dict[str, Tensor] = {}
    for part in parts:
        try:
            terms = _backward(setup, part, counts, precision)
        except NonFiniteCost as error:
            paths = ", ".join(str(part.samples[image].image_path) for image in error.image_indices)
            return {}, _Outcome(not_finite=f"the matching cost is not finite for {paths}")
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            sizes = ", ".join(f"{width} × {height}" for height, width in part.sizes_hw)
            images = f"images at a time: {len(part.targets)} ({sizes} pixels; {first_line(error)})"
            return {}, _Outcome(out_of_memory=images)
        sums = {name: term + sums[name] if sums else term for name, term in terms.items()}
    return sums, _Outcome(list(sums), [parameter.grad is not None for parameter in setup.parameters])


def _backward(setup: TrainSetup, part: Batch, counts: BatchCounts, precision: str) -> dict[str, Tensor]:
    """Add the gradients of a part, and return its terms without their graph, which is freed."""
    part = part.to(setup.device)
    output = _forward(setup, part, counts, precision)
    loss = total(terms := setup.criterion(output, part.targets, counts, part.unlabeled_tokens()))
    (setup.scaler.scale(loss) if precision == "fp16" else loss).backward()
    return {name: term.detach() for name, term in terms.items()}


def _forward(setup: TrainSetup, part: Batch, counts: BatchCounts, precision: str) -> Output:
    """Run the network in a precision; its output is float32."""
    part = part.normalized(setup.bundle.image_format)
    network, most_boxes = setup.network, max(counts.boxes)
    with autocast(setup.device, precision):
        if setup.train_features is not None:
            features = setup.train_features.get(part.images, part.indices, part.views, setup.device)
            output = network.forward_features(features, part.text, part.targets, most_boxes)
        else:
            output = network(part.canvas(), part.sizes_hw, part.text, part.targets, most_boxes)
    float32: Output = convert_to_fp32(output)
    return float32


def _reduce(setup: TrainSetup, terms: dict[str, Tensor], outcomes: Sequence[_Outcome]) -> dict[str, Tensor]:
    """Add terms and gradients over processes; a gradient that no process has stays None."""
    if len(outcomes) == 1:
        return terms
    names = max((outcome.terms for outcome in outcomes), key=len)
    zero = torch.zeros((), device=setup.device)
    values = torch.stack([terms.get(name, zero) for name in names])
    added = [values]
    present = zip(*(outcome.gradients for outcome in outcomes), strict=True)
    for parameter, processes in zip(setup.parameters, present, strict=True):
        if any(processes):
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            added.append(parameter.grad)
    flat = torch.cat([tensor.flatten() for tensor in added])
    torch.distributed.all_reduce(flat)
    for tensor, part in zip(added, flat.split([t.numel() for t in added]), strict=True):
        tensor.copy_(part.view_as(tensor))
    return dict(zip(names, values, strict=True))


def _halve_micro_batch(
    setup: TrainSetup, state: TrainState, micro_batch_size: int, out_of_memory: str
) -> None:
    """Halve the micro-batches of this and all later steps."""
    setup.optimizer.zero_grad(set_to_none=True)
    release_memory()
    where = f"Out of memory in step {state.step + 1}, {out_of_memory}"
    fixes = "--short-side, --gradient-checkpointing or --precision bf16"
    if micro_batch_size == 1:
        raise OutOfMemory(
            f"{where}. A step cannot be divided further: save memory with {fixes}, or use another machine. "
            f"The saved checkpoints are whole, in {setup.folder.path / 'checkpoints'}."
        )
    state.micro_batch_size = micro_batch_size // 2
    setup.log(
        f"{where}: from now on {state.micro_batch_size} at a time; optimizer steps and losses are the same, "
        f"but slower. Save memory with {fixes}."
    )


def _skip_step(
    setup: TrainSetup, state: TrainState, parts: Sequence[Batch], counts: BatchCounts, reason: str
) -> None:
    """Skip a step that is not finite, report its cause, and give up after too many."""
    state.bad_steps += 1
    state.skipped_steps += 1
    paths = [sample.image_path for part in parts for sample in part.samples]

    def forward() -> None:
        for part in parts:
            _forward(setup, part.to(setup.device), counts, "fp32")

    text = describe_bad_step(setup.network, forward, paths, reason)
    for line in filter(None, share(text if parts else "")):  # of each process that has images
        setup.log(line)
    setup.optimizer.zero_grad(set_to_none=True)
    if state.bad_steps >= setup.config.max_nonfinite_steps:
        raise TrainingDiverged(
            f"{state.bad_steps} steps in a row were not finite, at step {state.step + 1} of epoch "
            f"{state.epoch + 1} ({reason}). Try a lower learning rate; "
            f"{setup.folder.path / 'train.log'} names the images and modules."
        )
