"""Measuring a run while it trains: the validation split, what should not be forgotten, and the best weights so far.

The best weights are chosen by AP (of captions by recall@1) on the validation split, never on the test split (pitfall 28).

Images that turn out unreadable in the middle of a run: left out, told by name, and too many of them end it.

In training such an image is missing from its batch; in an evaluation on the way it counts as one without detections.
"""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

from torch import Tensor

from groundtune.data.sample import Dataset
from groundtune.engine import checkpoint
from groundtune.engine.blend import blended
from groundtune.engine.distributed import StopRequest
from groundtune.engine.evaluate import Evaluation, evaluate
from groundtune.engine.setup import Metrics, TrainSetup, TrainState
from groundtune.errors import CheckpointError, DataError

_SHOWN = 5  # images that are told on the terminal; all of them stand in train.log


def leave_out(run: TrainSetup, dataset: Dataset, found: Mapping[str, str]) -> None:
    """Tell of the images that were not told of yet.

    Args:
        dataset: their split.
        found: path of each image, and why it cannot be read; the same on all processes.

    Raises:
        DataError: they are more than `config.max_unreadable_share` allows.
    """
    known = run.unreadable.setdefault(dataset.name, {})
    for path, reason in found.items():
        if path in known:
            continue
        known[path] = reason
        text = f"An image of {dataset.name} is left out: {reason}"
        if len(known) < _SHOWN:
            run.say(text)
        elif len(known) == _SHOWN:
            run.say(f"{text} Further ones are listed in {run.folder.path / 'train.log'} only.")
        else:
            run.folder.log(text)
    share, images = run.config.max_unreadable_share, len(dataset.samples)
    allowed = max(1, int(share * images)) if share else 0
    if len(known) > allowed:
        raise DataError(
            f"{len(known)} of {images} images of {dataset.name} cannot be read, where max_unreadable_share {share:g} allows "
            f"{allowed}: the last one is {list(known)[-1]}, all are listed in {run.folder.path / 'train.log'}. Repair or "
            "remove them (`groundtune check` finds them all), or allow more with --max-unreadable-share."
        )


def evaluate_valid(
    run: TrainSetup, place: TrainState, stop: StopRequest, averaged: bool = True
) -> Evaluation:
    """Evaluates on the validation split, with the averaged weights if there are any, and writes the numbers down."""
    average = run.average.applied() if averaged and run.average is not None else nullcontext()
    with average, stop.at_once(run.accelerator):
        found = evaluate(
            run.bundle,
            run.valid,
            batch_size=run.config.batch_size,
            device=run.accelerator.device,
            progress=run.progress,
            features=run.valid_features,
            keep_going=True,
        )
    leave_out(run, run.valid, found.unreadable)
    run.record(place, prefixed(found.metrics))
    run.folder.log(
        f"step {place.step}: " + ", ".join(f"{name} {value}" for name, value in found.metrics.items())
    )
    return found


def measure_retention(
    run: TrainSetup, place: TrainState, retained: Mapping[str, Dataset], when: str, stop: StopRequest
) -> None:
    """Evaluates on the data sets that should not be forgotten, with the weights as they are."""
    for name, dataset in retained.items():
        with stop.at_once(run.accelerator):
            found = evaluate(
                run.bundle,
                dataset,
                batch_size=run.config.batch_size,
                device=run.accelerator.device,
                progress=run.progress,
            )
        place.retained.setdefault(name, {})[when] = found.metrics
        numbers = ", ".join(f"{metric} {value}" for metric, value in found.metrics.items())
        run.folder.log(f"retained {name}, {when} training: {numbers}")


def evaluate_and_keep_best(run: TrainSetup, place: TrainState, stop: StopRequest) -> None:
    """Evaluates on the validation split, and keeps weights and detections where no evaluation before was better."""
    found = evaluate_valid(run, place, stop)
    ap = found.score
    assert ap is not None  # the validation split has boxes
    place.final = prefixed(found.metrics)
    if ap > place.best_ap:
        place.best_ap = ap
        place.best = {
            "epoch": place.epoch,
            "step": place.step,
            "metrics": place.final,
            "per_class": found.per_class,
        }
        with run.average.applied() if run.average is not None else nullcontext():
            weights = checkpoint.trained_state(run.network)
        if run.accelerator.is_main_process:
            checkpoint.save_state({"network": weights, **place.best}, run.folder.checkpoint("best"))
        run.folder.json("predictions_valid.json", found.predictions, indent=None)
    if "AP" in found.metrics:
        run.progress.metrics(ap, place.best_ap)
    else:
        run.progress.message(f"evaluation  recall@1 {ap:.3f} (best {place.best_ap:.3f})")


def load_best_weights(run: TrainSetup, place: TrainState, stop: StopRequest) -> None:
    """Loads the best weights; where their file is damaged or of another step, the newest ones are the best there are."""
    file = run.folder.checkpoint("best")
    try:
        best = checkpoint.load_state(file)
        if best.get("step") != place.best["step"]:
            raise CheckpointError(f"{file} has not the weights of the best step {place.best['step']}.")
    except CheckpointError as error:
        run.say(f"{error} Taking the newest weights in place of the best ones.")
        place.best_ap = -math.inf
        evaluate_and_keep_best(run, place, stop)
        run.accelerator.wait_for_everyone()
        best = checkpoint.load_state(file)
    checkpoint.load_trained_state(run.network, best["network"], str(file))


def blend_best(run: TrainSetup, place: TrainState, stop: StopRequest, base: dict[str, Tensor]) -> None:
    """Goes back from the best weights towards the base, and measures what is there: it is what ships."""
    assert run.config.blend is not None
    weights = blended(base, checkpoint.trained_state(run.network), run.config.blend)
    checkpoint.load_trained_state(run.network, weights, "The base")
    after = replace(place, epoch=place.epoch + 1)  # so a resumed run forgets the line
    found = evaluate_valid(run, after, stop, averaged=False)
    run.say(f"Blended at {run.config.blend:g}: {found.score:.3f}, the trained weights {place.best_ap:.3f}.")
    place.best |= {"metrics": prefixed(found.metrics), "per_class": found.per_class}
    run.folder.json("predictions_valid.json", found.predictions, indent=None)


def prefixed(metrics: Metrics) -> Metrics:
    """The numbers under the names that a run has them by."""
    return {f"valid/{name}": value for name, value in metrics.items()}
