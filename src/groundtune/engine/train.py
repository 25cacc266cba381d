"""Training: one loop that reads top to bottom.

`accelerate` gives device, precision and processes; the loop is ours. A step is forward, loss in float32, backward, clip,
AdamW, schedule. The losses are those of `loss.criterion`, what trains is decided in `optim.freeze`, the parts are put
together in `run.set_up`. The host waits for the device once per step, for the loss and the gradient norm: a step that
is not finite must not reach the optimizer (semantics 17).

A run can be resumed after any step. The order of the data follows from seed and epoch, and the state has every random
generator, so a resumed run on the CPU equals the uninterrupted one bit for bit; with captions up to the last bits, because
phrases are encoded in the company in which they are met. Evaluation is in float32 with one process, whatever trains: its
numbers are those of `groundtune evaluate`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor

from groundtune.config import TrainConfig
from groundtune.data.sample import Dataset
from groundtune.device import peak_memory, pick_device, pick_precision
from groundtune.engine.distributed import StopRequest, stop_signals
from groundtune.engine.forgetting import add_self_distillation, base_detections
from groundtune.engine.resume import command_to_go_on, newest_state, restore_state, save_last
from groundtune.engine.run_folder import disk_faults, write_samples
from groundtune.engine.setup import Metrics, TrainSetup, TrainState, set_up, training_data
from groundtune.engine.step import optimizer_step
from groundtune.engine.validate import (
    blend_best,
    evaluate_and_keep_best,
    evaluate_valid,
    load_best_weights,
    measure_retention,
    prefixed,
)
from groundtune.errors import Interrupted
from groundtune.model.adapters import merge_adapters
from groundtune.model.bundle import ModelBundle
from groundtune.model.checkpoint.adapter import save_adapter
from groundtune.model.checkpoint.save import save_bundle
from groundtune.predict.detect import class_prompts, inference_mode
from groundtune.progress import Progress


@dataclass
class RunResult:
    """What a run came to. Keys of the numbers are "valid/AP", "valid/AP50" and so on, shares between 0 and 1.

    Attributes:
        folder: the run folder.
        zero_shot: before the first step.
        metrics: of the best weights, which are in the folder's `model/` and in the bundle.
        final: of the last weights.
        per_class: AP and AP50 of the best weights for each class.
        retained: of each set of `config.retain` the metrics "before" the first step and "after", of the best weights.
        seconds: wall time, with the time before a resume.
    """

    folder: Path
    zero_shot: Metrics
    metrics: Metrics
    final: Metrics
    per_class: dict[str, Metrics]
    retained: dict[str, dict[str, Metrics]]
    seconds: float


def train(
    config: TrainConfig,
    bundle: ModelBundle,
    splits: dict[str, Dataset],
    out: Path,
    progress: Progress,
    retained: Mapping[str, Dataset] | None = None,
) -> RunResult:
    """Fine-tunes the bundle's network on the split "train", and keeps what is best on the split "valid".

    Args:
        config: resolved options; `config.resume` names a run folder to go on with, usually `out` itself.
        bundle: changed in place; afterwards it has the best weights, and the data set's classes.
        splits: of one data set, with the same class names in all of them; "train" may have more, of what is replayed.
        out: run folder, new or empty unless resuming.
        progress: told about steps, evaluations and messages.
        retained: by name, other data sets to measure before and after.

    Raises:
        ConfigError: options, modules or the run folder are not usable, or a resumed run's options were changed; nothing
            has been written.
        DataError: a split is missing or has nothing in it, or an image cannot be read.
        CheckpointError: the state to resume from belongs to another model, or the run folder cannot be written to.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the run can be resumed.
        OutOfMemory: there is no memory for a single image.
        TrainingDiverged: `config.max_nonfinite_steps` steps in a row were not finite.
    """
    training, valid = training_data(config, splits)
    config = replace(config, precision=pick_precision(config.precision, pick_device(config.device)))
    resumed, go_on = newest_state(config, training, valid.class_names, out), command_to_go_on(config, out)
    place, started, run = TrainState(), time.perf_counter(), None
    with disk_faults(out, go_on), stop_signals() as stop:
        try:
            untrained = (pick_device(config.device), config.batch_size, progress)
            if config.retention_data == ["self"]:
                retained = base_detections(bundle, valid, *untrained)
            if config.self_distillation:
                training = add_self_distillation(bundle, training, *untrained, config.precision)
            run = set_up(config, bundle, training, valid, out, progress)
            run.progress.start(run.config.epochs * len(run.loader))
            restore_state(run, place, resumed)
            run.start_trackers(place.step)
            if resumed.state is None:
                measure_retention(run, place, retained or {}, "before", stop)
            _encode_classes(run)
            if resumed.state is None:
                if run.accelerator.is_main_process:
                    write_samples(run.loader, out / "samples")
                place.zero_shot = prefixed(evaluate_valid(run, place, stop, averaged=False).metrics)
            _train_epochs(run, place, stop, started - place.seconds)
            return _finish(run, place, stop, retained or {})
        except Interrupted as asked:
            raise Interrupted(
                f"stopped after step {place.step}. Go on with: {go_on}", asked.exit_code
            ) from None
        finally:
            progress.close()
            for tracker in run.accelerator.trackers if run is not None else ():
                tracker.finish()
            bundle.network.eval()
            if config.tune == "lora":
                merge_adapters(bundle.detector)  # of a run that stopped early
            if PartialState._shared_state and PartialState().num_processes == 1:
                # the next run may want another device or precision
                AcceleratorState._reset_state(reset_partial_state=True)


def _encode_classes(run: TrainSetup) -> None:
    """Has a frozen language model remember the class names, as float32 and in one way whether resumed or not."""
    language_model, device = run.network.language_model, run.accelerator.device
    language_model.forget()  # the last bits depend on the names that it met together
    if not run.bundle.classes:  # captions are encoded when they are met
        return
    prompts = class_prompts(run.bundle.tokenizer, run.bundle.classes, run.bundle.config.max_text_len)
    with inference_mode(run.network, "fp32"):
        language_model(prompts.text.to(device))


def _train_epochs(run: TrainSetup, place: TrainState, stop: StopRequest, began: float) -> None:
    """Trains and evaluates to the end; saves where it stops early, with the weights as they are after the last step.

    Args:
        began: when this process's clock would have shown 0, with the time before a resume.
    """

    def save() -> None:
        place.seconds = time.perf_counter() - began
        place.memory_bytes = max(place.memory_bytes, peak_memory(run.accelerator.device))
        save_last(run, place)

    try:
        while place.epoch < run.config.epochs:
            _train_epoch(run, place, stop, save)
            place.epoch, place.batch, batches = place.epoch + 1, 0, place.batch
            if place.epoch % run.config.eval_epochs == 0 or place.epoch == run.config.epochs:
                try:
                    evaluate_and_keep_best(run, place, stop)
                except Interrupted:  # it is done again
                    place.epoch, place.batch = place.epoch - 1, batches
                    raise
            stop.follow(run.accelerator)
            save()
    except Interrupted:
        save()
        raise


def _train_epoch(run: TrainSetup, place: TrainState, stop: StopRequest, save: Callable[[], None]) -> None:
    run.model.train()
    for batch in run.progress.batches(run.loader.epoch(place.epoch, place.batch)):
        rates = {group["name"]: group["lr"] for group in run.optimizer.param_groups}
        values = optimizer_step(run, batch, place)
        place.step += 1
        place.batch += 1
        if values is not None:
            _note(run, place, values, rates)
        stop.follow(run.accelerator)
        if run.config.save_steps and place.step % run.config.save_steps == 0:
            save()


def _note(
    run: TrainSetup,
    place: TrainState,
    values: tuple[dict[str, float], float, dict[str, Tensor]],
    rates: dict[str, float],
) -> None:
    """Shows the losses of a step, and writes the means since the last line when there have been enough."""
    losses, norm, terms = values
    place.running = {
        name: 0.95 * place.running.get(name, value) + 0.05 * value for name, value in losses.items()
    }
    run.progress.step(place.step, place.running, max(rates.values()), peak_memory(run.accelerator.device))
    for name, value in terms.items():
        place.sums[name] = place.sums[name] + value if name in place.sums else value
    place.counted += 1
    if place.step % run.config.log_steps == 0:
        means = (torch.stack(list(place.sums.values())) / place.counted).tolist()
        line = {"loss": place.running["loss"], "grad_norm": norm, "lr": rates}
        run.record(place, line | dict(zip(place.sums, means, strict=True)))
        place.sums, place.counted = {}, 0


def _finish(
    run: TrainSetup, place: TrainState, stop: StopRequest, retained: Mapping[str, Dataset]
) -> RunResult:
    """Takes the best weights back into the network, and writes what is missing of the model and the summary."""
    run.accelerator.wait_for_everyone()  # the main process has written the file
    load_best_weights(run, place, stop)
    if run.base is not None:
        blend_best(run, place, stop, run.base)
    run.network.eval()
    finished = run.folder.finished()
    writes = run.accelerator.is_main_process and not (finished and (run.folder.path / "model").is_dir())
    results = {"data": _data_in_words(run), "metrics": place.best["metrics"], "zero_shot": place.zero_shot}
    if run.config.tune == "lora":
        if writes:
            save_adapter(run.bundle, run.folder.path / "adapter", results)
        merge_adapters(run.network)
    if writes:
        save_bundle(run.bundle, run.folder.path / "model", results)
    if finished:
        run.say("The run is finished already.")
        place.retained = finished["retained"]
    else:
        measure_retention(run, place, retained, "after", stop)
        numbers = {"zero_shot": place.zero_shot, "final": place.final, "best": place.best["metrics"]}
        numbers["retained"] = place.retained
        where = {"best_epoch": place.best["epoch"], "best_step": place.best["step"], "seconds": place.seconds}
        where |= {"memory_bytes": place.memory_bytes, "valid_images": len(run.valid.samples)}
        run.folder.json("metrics.json", numbers | {"per_class": place.best["per_class"]} | where)
    return RunResult(
        folder=run.folder.path,
        zero_shot=place.zero_shot,
        metrics=place.best["metrics"],
        final=place.final,
        per_class=place.best["per_class"],
        retained=place.retained,
        seconds=place.seconds,
    )


def _data_in_words(run: TrainSetup) -> str:
    """For the model card; without the folder's path, which is nobody's business."""
    samples = run.loader.dataset.samples
    boxes = sum(len(sample.class_ids) for sample in samples)
    return f"{Path(run.config.data).resolve().name}, {len(samples)} images with {boxes} boxes"
