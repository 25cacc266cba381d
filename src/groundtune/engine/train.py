"""Training: one loop from the first step to the last, with validation and checkpoints.

`setup` builds the parts of a run, `optim` decides what trains, `step` takes an optimizer step,
`validate` keeps the best weights, `resume` saves and restores the state.

A run can be resumed after any step. The order of the data follows from seed and epoch, and the
state has every random generator, so a resumed run on a CPU equals the uninterrupted one bit for bit
(with captions up to the last bits: phrases are encoded along with others). Evaluation is in the
precision of training, on a CPU in float32.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from groundtune.config import TrainConfig
from groundtune.data.sample import Dataset
from groundtune.device import deterministic, float32_mode, peak_memory, pick_precision
from groundtune.engine.distributed import own_device, share
from groundtune.engine.evaluate import Metrics
from groundtune.engine.forgetting import add_self_distillation, base_detections
from groundtune.engine.resume import newest_state, restore_state, resume_command, save_state
from groundtune.engine.run_folder import disk_faults, write_samples
from groundtune.engine.setup import TrainSetup, TrainState, build_setup, start_processes
from groundtune.engine.signals import StopRequest, stop_signals
from groundtune.engine.step import StepResult, optimizer_step
from groundtune.engine.validate import (
    blend_best_weights,
    evaluate_valid,
    load_best_weights,
    measure_retention,
    model_card,
    prefixed,
    validate_and_keep_best,
)
from groundtune.errors import DataError, Interrupted, TrainingDiverged
from groundtune.model.adapters import merge_adapters
from groundtune.model.bundle import ModelBundle
from groundtune.model.checkpoint.adapter import save_adapter
from groundtune.model.checkpoint.save import save_bundle
from groundtune.model.detector import GroundingDINO
from groundtune.predict.detect import class_prompts, inference_mode
from groundtune.progress import Progress


@dataclass
class RunResult:
    """The metrics of a finished run: shares in [0, 1] by names such as "valid/AP" and "valid/AP50".

    Attributes:
        folder: run directory.
        zero_shot: before the first step.
        metrics: of the best weights, which are in the directory's `model/` and in the bundle.
        final: of the last weights.
        per_class: AP and AP50 of the best weights by class name.
        retention: name of each retention data set → metrics "before" the first step and "after", of
            the best weights.
        seconds: wall time, including that before a resume.
    """

    folder: Path
    zero_shot: Metrics
    metrics: Metrics
    final: Metrics
    per_class: dict[str, Metrics]
    retention: dict[str, dict[str, Metrics]]
    seconds: float


def train(
    config: TrainConfig,
    bundle: ModelBundle,
    splits: dict[str, Dataset],
    out: Path,
    progress: Progress,
    retention_data: Mapping[str, Dataset],
) -> RunResult:
    """Fine-tune the bundle's network on the split "train", and keep its best weights on "valid".

    Args:
        config: resolved options.
        bundle: changed in place; afterwards it has the best weights and the data set's classes.
        splits: "train" and "valid"; "train" may have more classes, from rehearsal data.
        out: run directory, new or empty; on a resume that of the interrupted run.

    Raises:
        ConfigError: options or the run directory are unusable, or a resumed run's options differ.
        DataError: a split is missing, or too many images cannot be read.
        CheckpointError: the checkpoint is another model's, or the run directory is not writable.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the run can be resumed.
        OutOfMemory: a single image does not fit into memory.
        TrainingDiverged: `config.max_nonfinite_steps` steps in a row, or all, were not finite.
    """
    for name in ("train", "valid"):
        if name not in splits:
            found = ", ".join(splits) or "none"
            raise DataError(f"{config.data}: there is no split {name!r}; found: {found}.")
    training, valid, device = splits["train"], splits["valid"], own_device(config.device)
    config = replace(config, precision=pick_precision(config.precision, device))
    resumed, state = newest_state(config, training, valid.class_names, out), TrainState()
    resume_hint = resume_command(config, out)
    with disk_faults(out, resume_hint), ExitStack() as cleanup, stop_signals() as stop:
        cleanup.callback(torch.set_num_threads, torch.get_num_threads())
        cleanup.callback(_leave_plain, bundle.detector, config)
        cleanup.callback(progress.close)
        for mode in (deterministic(config.deterministic), float32_mode(device, config.precision)):
            cleanup.enter_context(mode)
        try:
            start_processes(config, out)
            computing = device, config.batch_size or TrainConfig.batch_size, progress
            if config.retention_data == ["self"]:
                retention_data = base_detections(bundle, valid, *computing)
            if config.self_distillation:
                training = add_self_distillation(bundle, training, *computing, config.precision)
            setup = build_setup(config, bundle, training, valid, out, progress)
            setup.progress.start(setup.config.epochs * len(setup.loader))
            restore_state(setup, state, resumed)
            _start_trackers(setup, state.step)
            cleanup.callback(_finish_trackers, setup)
            _evaluate_base(setup, state, stop, retention_data, resumed.state is None)
            stop.nothing_to_save = False
            _train_loop(setup, state, stop)
            _report_skipped(setup, state)
            stop.nothing_to_save = True
            return _finish(setup, state, stop, retention_data)
        except Interrupted as error:
            fix = f"Resume with: {resume_hint}" if (out / "config.yaml").is_file() else "Nothing was written."
            raise Interrupted(f"Interrupted after step {state.step}. {fix}", error.exit_code) from None


def _train_loop(setup: TrainSetup, state: TrainState, stop: StopRequest) -> None:
    """Train to the last epoch. An interrupted run saves its state after the last finished step."""
    config = setup.config
    try:
        while state.epoch < config.epochs:
            setup.network.train()
            batches = setup.loader.epoch(state.epoch, first_batch=state.batch)
            for batch in setup.progress.batches(batches):
                result = optimizer_step(setup, state, batch)  # forward, backward, AdamW, EMA
                state.step += 1
                state.batch += 1
                if result is not None:
                    _log_step(setup, state, result)
                stop.raise_if_requested(share)
                if config.save_steps and state.step % config.save_steps == 0:
                    save_state(setup, state)
            state.epoch, state.batch = state.epoch + 1, 0
            if state.epoch % config.eval_epochs == 0 or state.epoch == config.epochs:
                validate_and_keep_best(setup, state, stop)
            stop.raise_if_requested(share)
            save_state(setup, state)
    except Interrupted:
        save_state(setup, state)
        raise


def _report_skipped(setup: TrainSetup, state: TrainState) -> None:
    """Report the steps that were not finite; a `TrainingDiverged` if all were."""
    text = f"{state.skipped_steps} of {state.step} steps were skipped, because they were not finite."
    if 0 < state.step == state.skipped_steps:
        log_file = setup.folder.path / "train.log"
        raise TrainingDiverged(f"{text} Try a lower learning rate; {log_file} names the images and modules.")
    if state.skipped_steps:
        setup.log(text)
    if state.float32_steps:
        setup.log(f"{state.float32_steps} of {state.step} steps were computed again in float32.")


def _log_step(setup: TrainSetup, state: TrainState, result: StepResult) -> None:
    """Display moving means of the losses; log the means of all terms every `config.log_steps`."""
    state.running = {
        name: 0.95 * state.running.get(name, loss) + 0.05 * loss for name, loss in result.losses.items()
    }
    setup.progress.step(state.step, state.running, max(result.lr.values()), peak_memory(setup.device))
    for name, term in result.terms.items():
        state.sums[name] = state.sums[name] + term if name in state.sums else term
    state.counted += 1
    if state.step % setup.config.log_steps == 0:
        means = (torch.stack(list(state.sums.values())) / state.counted).tolist()
        line = {"loss": state.running["loss"], "grad_norm": result.grad_norm, "lr": result.lr}
        setup.record(state, line | dict(zip(state.sums, means, strict=True)))
        state.sums, state.counted = {}, 0


def _start_trackers(setup: TrainSetup, step: int) -> None:
    """Start the trackers; TensorBoard hides what came after `step` before a resume."""
    options = asdict(setup.config).items()
    plain = {name: v if isinstance(v, int | float | str) else json.dumps(v) for name, v in options}
    name = setup.folder.path.resolve().name
    by_tracker = {
        "tensorboard": {"purge_step": step + 1},
        "wandb": {"name": name},
        "mlflow": {"run_name": name},
    }
    setup.accelerator.init_trackers("groundtune", plain, by_tracker)


def _finish_trackers(setup: TrainSetup) -> None:
    """Close the trackers, also after an error."""
    for tracker in setup.accelerator.trackers:
        tracker.finish()


def _leave_plain(network: GroundingDINO, config: TrainConfig) -> None:
    """Leave the network in eval mode and without adapters, also after an error."""
    network.eval()
    if config.tune == "lora":
        merge_adapters(network)


def _evaluate_base(
    setup: TrainSetup, state: TrainState, stop: StopRequest, retention_data: Mapping[str, Dataset], new: bool
) -> None:
    """Evaluate a new run's model before the first step, and write its first images."""
    if new:
        measure_retention(setup, state, retention_data, "before", stop)
    _encode_classes(setup)
    if new:
        if setup.accelerator.is_main_process:
            write_samples(setup.loader, setup.folder.path / "samples")
        state.zero_shot = prefixed(evaluate_valid(setup, state, stop).metrics)


def _encode_classes(setup: TrainSetup) -> None:
    """Cache the class names in a frozen language model: in float32, together, on resumes too."""
    bundle, language_model = setup.bundle, setup.network.language_model
    language_model.forget()  # a phrase's last bits depend on those encoded along with it
    if bundle.classes:
        phrases = bundle.phrases_of(bundle.classes)
        prompts = class_prompts(bundle.tokenizer, phrases, bundle.config.max_text_len)
        with inference_mode(setup.network, "fp32"):
            language_model(prompts.text.to(setup.device))


def _finish(
    setup: TrainSetup, state: TrainState, stop: StopRequest, retention_data: Mapping[str, Dataset]
) -> RunResult:
    """Load the best weights, and write the model and metrics.json where they are missing."""
    bundle, folder = setup.bundle, setup.folder
    setup.accelerator.wait_for_everyone()  # until the main process has written the file
    load_best_weights(setup, state, stop)
    if setup.config.blend is not None:
        blend_best_weights(setup, state, stop)
    setup.network.eval()
    finished = folder.finished()
    writes = setup.accelerator.is_main_process and not (finished and (folder.path / "model").is_dir())
    best = state.best
    card = model_card(setup, state)
    if setup.config.tune == "lora":
        if writes:
            save_adapter(bundle, folder.path / "adapter", card)
        merge_adapters(setup.network)
    if writes:
        save_bundle(bundle, folder.path / "model", card)
    if finished:
        setup.log("The run is finished already.")
        state.retention = finished.get("retention", {})
    else:
        measure_retention(setup, state, retention_data, "after", stop)
        summary = {
            "zero_shot": state.zero_shot,
            "final": state.final,
            "best": best["metrics"],
            "retention": state.retention,
            "per_class": best["per_class"],
            "best_epoch": best["epoch"],
            "best_step": best["step"],
            "seconds": state.seconds,
            "memory_bytes": state.memory_bytes,
            "valid_images": len(setup.valid.samples),
        }
        folder.json("metrics.json", summary)
    of_best = best["metrics"], state.final, best["per_class"]
    return RunResult(folder.path, state.zero_shot, *of_best, state.retention, state.seconds)
