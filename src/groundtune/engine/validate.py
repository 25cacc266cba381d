"""Evaluation during training: validation split, retention data, and the best weights.

The best weights have the highest AP (recall@1 of captions) on the validation split, never on the
test split.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

from groundtune.data.sample import Dataset
from groundtune.engine import checkpoint
from groundtune.engine.blend import blended
from groundtune.engine.evaluate import Evaluation, Metrics, eval_task, run_task
from groundtune.engine.setup import TrainSetup, TrainState
from groundtune.engine.signals import StopRequest
from groundtune.errors import CheckpointError, DataError, Interrupted
from groundtune.model.adapters import merge_adapters
from groundtune.model.checkpoint.save import save_bundle
from groundtune.predict.features import FeatureCache

_MOST_SHOWN = 5  # unreadable images on the terminal; train.log lists all


def skip_unreadable(
    setup: TrainSetup, state: TrainState, dataset: Dataset, unreadable: Mapping[str, str]
) -> None:
    """Report newly unreadable images (path → reason, the same in all processes), which are skipped.

    Raises:
        DataError: there are more in the run than `config.max_unreadable_share` allows.
    """
    known, log_file = state.unreadable.setdefault(dataset.name, {}), setup.folder.path / "train.log"
    for path, reason in unreadable.items():
        if path in known:
            continue
        known[path] = reason
        text = f"An image of {dataset.name} is skipped: {reason}"
        if len(known) < _MOST_SHOWN:
            setup.log(text)
        elif len(known) == _MOST_SHOWN:
            setup.log(f"{text} Further ones are listed in {log_file} only.")
        else:
            setup.folder.log(text)
    share, images = setup.config.max_unreadable_share, len(dataset.samples)
    allowed = max(1, int(share * images)) if share else 0
    if len(known) > allowed:
        raise DataError(
            f"{len(known)} of {images} images of {dataset.name} cannot be read; max_unreadable_share "
            f"{share:g} allows {allowed}. The last one is {list(known)[-1]}, all are listed in {log_file}. "
            "Repair or remove them (`groundtune check` finds them all), or allow more with "
            "--max-unreadable-share."
        )


def _evaluate(
    setup: TrainSetup,
    state: TrainState,
    dataset: Dataset,
    stop: StopRequest,
    features: FeatureCache | None,
    skip: bool,
) -> Evaluation:
    """Evaluate in the run's precision, on a CPU in float32; a stop signal interrupts it."""
    precision = "fp32" if setup.device.type == "cpu" else setup.config.precision
    limits = (setup.config.batch_size, setup.config.micro_batch_size, state.micro_batch_size)
    batch_size = min(limit for limit in limits if limit)
    with stop.immediately(setup.accelerator):
        task = eval_task(setup.bundle, dataset, None, precision)
        return run_task(task, dataset, batch_size, setup.device, setup.progress, features, skip)


def _averaged(setup: TrainSetup) -> AbstractContextManager[None]:
    return nullcontext() if setup.average is None else setup.average.applied()


def evaluate_valid(setup: TrainSetup, state: TrainState, stop: StopRequest) -> Evaluation:
    """Evaluate the present weights on the validation split and log the metrics."""
    evaluation = _evaluate(setup, state, setup.valid, stop, setup.valid_features, skip=True)
    skip_unreadable(setup, state, setup.valid, evaluation.unreadable)
    setup.record(state, prefixed(evaluation.metrics))
    setup.folder.log(f"step {state.step}: {_listed(evaluation.metrics)}")
    return evaluation


def measure_retention(
    setup: TrainSetup, state: TrainState, datasets: Mapping[str, Dataset], when: str, stop: StopRequest
) -> None:
    """Evaluate the present weights on the retention data; `when` is "before" or "after"."""
    for name, dataset in datasets.items():
        metrics = _evaluate(setup, state, dataset, stop, None, skip=False).metrics
        state.retention.setdefault(name, {})[when] = metrics
        setup.folder.log(f"retention on {name}, {when} training: {_listed(metrics)}")


def validate_and_keep_best(setup: TrainSetup, state: TrainState, stop: StopRequest) -> None:
    """Validate the averaged weights; save them and their detections if they are the best.

    If a signal interrupts it, the state is that before: the resumed run repeats the validation.
    """
    try:
        with _averaged(setup):
            evaluation = evaluate_valid(setup, state, stop)
    except Interrupted:
        state.epoch, state.batch = state.epoch - 1, len(setup.loader)
        raise
    score = evaluation.score
    assert score is not None  # the validation split has boxes
    state.final = prefixed(evaluation.metrics)
    if score > state.best_ap:
        state.best_ap = score
        best_of = {"epoch": state.epoch, "step": state.step}
        state.best = best_of | {"metrics": state.final, "per_class": evaluation.per_class}
        if setup.accelerator.is_main_process:
            with _averaged(setup):
                weights = checkpoint.trained_weights(setup.network)
                checkpoint.save_state({"network": weights, **state.best}, setup.folder.checkpoint("best"))
                _save_model(setup, state)
        setup.folder.json("predictions_valid.json", evaluation.predictions, indent=None)
    if "AP" in evaluation.metrics:
        setup.progress.metrics(score, state.best_ap)
    else:
        setup.progress.message(f"evaluation  recall@1 {score:.3f} (best {state.best_ap:.3f})")


def _save_model(setup: TrainSetup, state: TrainState) -> None:
    """Write the present weights as a model, which can be used before the run ends."""
    bundle = setup.bundle
    if setup.config.tune == "lora":
        bundle = replace(bundle, network=deepcopy(setup.network))
        merge_adapters(bundle.detector)
    save_bundle(bundle, setup.folder.path / "model", model_card(setup, state))


def model_card(setup: TrainSetup, state: TrainState) -> dict[str, Any]:
    """Return what the card of the best model says; of the data not the path, which is private."""
    samples = setup.loader.dataset.samples
    boxes = sum(len(sample.class_ids) for sample in samples)
    data = f"{Path(setup.config.data).resolve().name}, {len(samples)} images with {boxes} boxes"
    return {"data": data, "metrics": state.best["metrics"], "zero_shot": state.zero_shot}


def load_best_weights(setup: TrainSetup, state: TrainState, stop: StopRequest) -> None:
    """Load the best weights; if their file is corrupted or too old, use the newest instead."""
    file = setup.folder.checkpoint("best")
    try:
        best = checkpoint.load_state(file)
        if best.get("step") != state.best["step"]:
            raise CheckpointError(f"{file} does not have the weights of the best step {state.best['step']}.")
    except CheckpointError as error:
        setup.log(f"{error} Using the newest weights instead of the best ones.")
        state.best_ap = -math.inf
        validate_and_keep_best(setup, state, stop)
        setup.accelerator.wait_for_everyone()
        best = checkpoint.load_state(file)
    checkpoint.load_trained_weights(setup.network, best["network"], str(file))


def blend_best_weights(setup: TrainSetup, state: TrainState, stop: StopRequest) -> None:
    """Blend the best weights with the base by `config.blend`, and evaluate the result."""
    alpha, base_weights = setup.config.blend, setup.base_weights
    assert alpha is not None and base_weights is not None
    weights = blended(base_weights, checkpoint.trained_weights(setup.network), alpha)
    checkpoint.load_trained_weights(setup.network, weights, "the base")
    after_training = replace(state, epoch=state.epoch + 1)  # a resume drops this line
    evaluation = evaluate_valid(setup, after_training, stop)
    setup.log(f"Blended at {alpha:g}: {evaluation.score:.3f}, the trained weights {state.best_ap:.3f}.")
    state.best |= {"metrics": prefixed(evaluation.metrics), "per_class": evaluation.per_class}
    setup.folder.json("predictions_valid.json", evaluation.predictions, indent=None)


def prefixed(metrics: Metrics) -> Metrics:
    """Return the metrics by their names in a run."""
    return {f"valid/{name}": value for name, value in metrics.items()}


def _listed(metrics: Metrics) -> str:
    return ", ".join(f"{name} {value}" for name, value in metrics.items())
