"""One optimizer step: forward, loss in float32, backward, clip, AdamW, schedule, average.

A step's images are shared out over the processes, and each computes its share in micro-batches. All terms are divided by
the numbers of the whole batch, so that losses and gradients simply add up: over micro-batches in place, over processes in
one reduction at the end. Until then no process waits for another, so one that runs out of memory, meets a NaN or has no
image at all can say so first, and all do the same: repeat the step in smaller parts, leave it out, or take it.

Deviation from the usual way (`DistributedDataParallel`): it reduces gradients during the backward pass, which saves a
little time, and leaves the others waiting when a process fails there.

The host waits for the device once, for the loss and the gradient norm: a step that is not finite must not reach the
optimizer (semantics 17).

Finding out where a training step stopped being finite (semantics 17).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from groundtune.contracts import Output
from groundtune.data.batch import Batch
from groundtune.device import is_out_of_memory, release_memory
from groundtune.engine import checkpoint
from groundtune.engine.setup import TrainSetup, TrainState
from groundtune.engine.validate import leave_out
from groundtune.errors import OutOfMemory, TrainingDiverged
from groundtune.loss.criterion import BatchCounts, total
from groundtune.loss.matcher import NonFiniteCost


def first_non_finite_module(network: nn.Module, run: Callable[[], object]) -> str | None:
    """Runs a forward pass again and watches every module.

    Minus infinity is not a fault: it is the logit of the places outside a prompt.

    Args:
        network: the modules to watch.
        run: makes the forward pass; it runs without gradient.

    Returns:
        Path of the first module that gives NaN or plus infinity, the innermost one; None when all are finite.
    """
    found: list[str] = []
    handles = []

    def watch(path: str) -> None:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not found and has_non_finite(output):
                found.append(path)

        handles.append(network.get_submodule(path).register_forward_hook(hook))

    for path, _ in network.named_modules():
        watch(path)
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return (found[0] or "the network") if found else None


def describe_bad_step(
    network: nn.Module, run: Callable[[], object], paths: Sequence[Path], reason: str
) -> str:
    """Puts a step that was not finite into words: the images, and where it began.

    Args:
        network: with the gradients of that step, if there are any.
        run: makes that step's forward pass.
        paths: the image files of the batch.
        reason: what was not finite.
    """
    module = first_non_finite_module(network, run)
    if module is not None:
        where = f"the first module whose output is not finite is {module}"
    else:
        broken = [
            name
            for name, p in network.named_parameters()
            if p.grad is not None and not p.grad.isfinite().all()
        ]
        where = (
            f"all outputs are finite, the gradient of {broken[-1]} is not"
            if broken
            else "all outputs are finite"
        )
    files = ", ".join(str(path) for path in dict.fromkeys(paths))
    return f"Step skipped: {reason}; {where}. Images: {files}"


def has_non_finite(value: object) -> bool:
    """Whether a tensor anywhere inside is NaN or plus infinity."""
    return any(_is_broken(tensor) for tensor in _tensors(value))


def _is_broken(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and bool((tensor.isnan() | (tensor == torch.inf)).any())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


_SHOWN_TERMS = ("loss_cls", "loss_bbox", "loss_giou")  # of the last layer, beside the whole loss


class _Outcome(NamedTuple):
    """How a process got on with its share of a step."""

    names: list[str]  # of its terms; none without an image
    not_finite: str = ""  # what
    too_large: str = ""  # the images that memory had no room for together, and what it said


def optimizer_step(
    run: TrainSetup, batch: Batch, place: TrainState
) -> tuple[dict[str, float], float, dict[str, Tensor]] | None:
    """One optimizer step.

    Args:
        batch: this process's share; it may be empty.

    Returns:
        The loss and the terms that are shown, the norm of the gradient before clipping, and all terms, detached, of the
        whole batch; None when the step was skipped, since it was not finite or none of its images can be read.

    Raises:
        DataError: too many images cannot be read.
        OutOfMemory: there is no memory for a single image.
        TrainingDiverged: too many steps in a row were not finite.
    """
    whole, largest_share = _whole_batch(run, batch)
    if not whole.boxes:
        return None
    random_state = checkpoint.random_state()
    while True:
        micro_batch_size = min(
            limit for limit in (run.config.micro_batch_size, place.micro_batch_size, largest_share) if limit
        )
        parts = batch.split(micro_batch_size)
        terms, own = _add_gradients(run, parts, whole)
        outcomes: list[_Outcome] = gather_object([own])
        too_large = next((outcome.too_large for outcome in outcomes if outcome.too_large), "")
        if not too_large:
            break
        _halve(run, place, micro_batch_size, too_large)
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
    if run.config.max_grad_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(run.parameters, run.config.max_grad_norm, norm)
    run.optimizer.step()
    run.schedule.step()
    run.optimizer.zero_grad(set_to_none=True)
    if run.average is not None:
        run.average.update()
    place.bad_steps = 0
    return losses, norm_value, terms


def _whole_batch(run: TrainSetup, batch: Batch) -> tuple[BatchCounts, int]:
    """What is in the shares of all processes, and the most images of one; those that cannot be read are told."""
    own = (
        [len(target.boxes_cxcywh) for target in batch.targets],
        int(batch.text.text_token_mask.sum()),
        batch.unreadable,
    )
    shares: list[tuple[list[int], int, dict[str, str]]] = gather_object([own])
    leave_out(run, run.loader.dataset, {path: why for *_, found in shares for path, why in found.items()})
    boxes = [count for counts, _, _ in shares for count in counts]
    return BatchCounts(boxes, sum(tokens for _, tokens, _ in shares)), max(
        len(counts) for counts, _, _ in shares
    )


def _add_gradients(
    run: TrainSetup, parts: Sequence[Batch], whole: BatchCounts
) -> tuple[dict[str, Tensor], _Outcome]:
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
            return {}, _Outcome(
                [], too_large=f"images at a time: {len(part.targets)} ({sizes} pixels; {reason})"
            )
        sums = {name: term + sums[name] if sums else term for name, term in terms.items()}
    return sums, _Outcome(list(sums))


def _backward(run: TrainSetup, part: Batch, whole: BatchCounts) -> dict[str, Tensor]:
    part = part.to(run.accelerator.device)
    terms = run.criterion(_forward(run, part, whole), part.targets, whole)
    run.accelerator.backward(total(terms))
    return {name: term.detach() for name, term in terms.items()}


def _forward(run: TrainSetup, part: Batch, whole: BatchCounts) -> Output:
    features = None
    if run.train_features is not None:
        features = run.train_features.get(part.images, part.indices, part.views, run.accelerator.device)
    output: Output = run.model(part, features, max(whole.boxes))
    return output


def _over_processes(run: TrainSetup, terms: dict[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Adds gradients and terms over processes, in one reduction. A parameter that none has a gradient of keeps none."""
    if run.accelerator.num_processes == 1:
        return terms
    zero = torch.zeros((), device=run.accelerator.device)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in run.parameters]
    present = torch.tensor([float(p.grad is not None) for p in run.parameters], device=zero.device)
    values = torch.stack([terms.get(name, zero) for name in names])
    flat = torch.cat([values, present, *(gradient.flatten() for gradient in gradients)])
    torch.distributed.all_reduce(flat)
    values, present, *sums = flat.split(
        [len(values), len(present), *(gradient.numel() for gradient in gradients)]
    )
    for parameter, gradient, count in zip(run.parameters, sums, present.tolist(), strict=True):
        parameter.grad = gradient.view_as(parameter) if count else None
    return dict(zip(names, values, strict=True))


def _halve(run: TrainSetup, place: TrainState, micro_batch_size: int, too_large: str) -> None:
    """Makes the micro-batch smaller, for this step and all later ones."""
    run.optimizer.zero_grad(set_to_none=True)
    release_memory()
    where = f"Out of memory in step {place.step + 1}, {too_large}"
    fixes = "--short-side, --gradient-checkpointing or --precision bf16"
    if micro_batch_size == 1:
        raise OutOfMemory(
            f"{where}. There is no smaller part of a step: use less memory with {fixes}, or another machine. What was saved "
            f"before is whole in {run.folder.path / 'checkpoints'}."
        )
    place.micro_batch_size = micro_batch_size // 2
    run.say(
        f"{where}: from now on {place.micro_batch_size} at a time, for the same optimizer step and losses, but slower. "
        f"Less memory is needed with {fixes}."
    )


def _skip(
    run: TrainSetup, parts: Sequence[Batch], whole: BatchCounts, place: TrainState, reason: str
) -> None:
    """Leaves a step out that was not finite, says where it began, and gives up after too many."""
    place.bad_steps += 1
    paths = [sample.image_path for part in parts for sample in part.samples]
    device = run.accelerator.device
    text = describe_bad_step(
        run.network, lambda: [_forward(run, part.to(device), whole) for part in parts], paths, reason
    )
    for line in gather_object([text] if parts else []):  # of every process that has images
        run.say(line)
    run.optimizer.zero_grad(set_to_none=True)
    if place.bad_steps >= run.config.max_nonfinite_steps:
        raise TrainingDiverged(
            f"{place.bad_steps} steps in a row were not finite, at step {place.step + 1} of epoch {place.epoch + 1} "
            f"({reason}). A lower learning rate or precision fp32 may help; the images and modules are in "
            f"{run.folder.path / 'train.log'}."
        )
