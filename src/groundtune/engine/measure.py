"""Measuring a run while it trains: the validation split, what should not be forgotten, and the best weights so far.

The best weights are chosen by AP (of captions by recall@1) on the validation split, never on the test split (pitfall 28).
"""

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace

from torch import Tensor

from groundtune.data.sample import Dataset
from groundtune.engine import checkpoint
from groundtune.engine.blend import blended
from groundtune.engine.evaluate import Evaluation, evaluate
from groundtune.engine.run import Metrics, Place, Run
from groundtune.engine.signals import StopRequest
from groundtune.engine.unreadable import leave_out
from groundtune.errors import CheckpointError


def evaluate_valid(run: Run, place: Place, stop: StopRequest, averaged: bool = True) -> Evaluation:
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
    run.folder.log(f"step {place.step}: " + ", ".join(f"{name} {value}" for name, value in found.metrics.items()))
    return found


def measure_retained(run: Run, place: Place, retained: Mapping[str, Dataset], when: str, stop: StopRequest) -> None:
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


def evaluate_and_keep_best(run: Run, place: Place, stop: StopRequest) -> None:
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


def take_best(run: Run, place: Place, stop: StopRequest) -> None:
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


def blend_best(run: Run, place: Place, stop: StopRequest, base: dict[str, Tensor]) -> None:
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
