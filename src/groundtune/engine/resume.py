"""Saving a run's state in `checkpoints/last.pt`, and resuming from it.

The state before is kept as `previous.pt`, in case the newest is corrupted. A run that was killed
before its first checkpoint starts again in its folder.
"""

import os
import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from groundtune.config import TrainConfig
from groundtune.data.sample import Dataset
from groundtune.device import peak_memory
from groundtune.engine import checkpoint
from groundtune.engine.distributed import share
from groundtune.engine.setup import TrainSetup, TrainState
from groundtune.errors import CheckpointError, ConfigError

# Options that may change on a resume: they decide where and how fast a run computes, not what.
_FREE_OPTIONS = {"data", "model", "output_dir", "resume", "device", "devices", "workers", "threads"}
_FREE_OPTIONS |= {"micro_batch_size", "gradient_checkpointing", "log_steps", "save_steps", "report_to"}
_FREE_OPTIONS |= {"max_nonfinite_steps", "max_unreadable_share"}
# Values of the wrong type raise these: a checkpoint may come from anywhere.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Resumed(NamedTuple):
    """The newest readable state, None to start from the beginning; its name; messages about it."""

    state: checkpoint.State | None
    name: str
    messages: list[str]


def resume_command(config: TrainConfig, out: Path) -> str:
    """Return the command line that resumes the run."""
    return shlex.join(["groundtune", "train", config.data, "--resume", str(out)])


def save_state(setup: TrainSetup, state: TrainState) -> None:
    """Save all that a resumed run needs to equal an uninterrupted one. All processes call it."""
    state.seconds = time.perf_counter() - state.began
    state.memory_bytes = max(state.memory_bytes, peak_memory(setup.device))
    random = share(checkpoint.random_state())
    if not setup.accelerator.is_main_process:
        return
    average = setup.average
    content = {
        "config": asdict(setup.config),
        "classes": setup.bundle.classes,
        "images": len(setup.loader.dataset.samples),
        "epoch": state.epoch,
        "state": {n: v for n, v in asdict(state).items() if n not in ("began", "unreadable")},
        "network": checkpoint.trained_weights(setup.network),
        "optimizer": setup.optimizer.state_dict(),
        "schedule": setup.schedule.state_dict(),
        "average": None if average is None else average.average,
        "average_updates": 0 if average is None else average.updates,
        "scaler": setup.scaler.state_dict(),
        "random": random,
    }
    last, previous = setup.folder.checkpoint("last"), setup.folder.checkpoint("previous")
    checkpoint.save_state(content, last, previous)


def newest_state(config: TrainConfig, training: Dataset, classes: list[str], out: Path) -> Resumed:
    """Read the state to resume from; `config.resume` is None for a new run.

    Raises:
        ConfigError: options or data differ from the interrupted run's.
        CheckpointError: the state is not that of a run.
    """
    if config.resume is None:
        return Resumed(None, "", [])
    if Path(config.resume).resolve() != out.resolve():
        raise ConfigError(
            f"resume: a run resumes in its own folder {config.resume}, but the output is {out}. Remove "
            "--output-dir."
        )
    messages = []
    for name in ("last", "previous"):
        try:
            state = checkpoint.load_state(out / "checkpoints" / f"{name}.pt")
        except CheckpointError as error:
            messages.append(f"{error} Trying an earlier one.")
            continue
        try:
            return Resumed(state, name, messages + _check_unchanged(config, training, classes, state))
        except _MALFORMED as error:
            raise CheckpointError(
                f"resume: the {name} checkpoint of {out} is incomplete ({error!r:.100})."
            ) from error
    return Resumed(None, "", [*messages, f"No checkpoint of {out} can be read: the run starts again."])


def _check_unchanged(
    config: TrainConfig, training: Dataset, classes: list[str], state: checkpoint.State
) -> list[str]:
    """Raise if the run would compute something else; return a message about free options."""
    if "config" not in state:
        raise CheckpointError(
            f"resume: the checkpoint of {config.resume} has weights only, not the state of a run."
        )
    was = asdict(TrainConfig(data=config.data)) | state["config"]  # an older run may lack options
    now = asdict(config)
    changed = [name for name in now if was[name] != now[name]]
    free = _FREE_OPTIONS | {"epochs"} | ({"min_steps"} if not config.min_steps else set())
    problems = [
        f"resume: {name} was {was[name]!r} and is now {now[name]!r}." for name in changed if name not in free
    ]
    if "epochs" in changed and config.epochs <= state["epoch"]:
        problems.append(f"resume: expected more epochs than the {state['epoch']} done, got {config.epochs}.")
    phrase_of = dict(zip(training.class_names, training.phrases, strict=True))
    if state["classes"] not in (classes, [phrase_of[name] for name in classes]):  # phrases: of older versions
        problems.append(f"resume: the classes were {state['classes']} and are now {classes}.")
    if state["images"] != len(training.samples):
        problems.append(f"resume: there were {state['images']} training images, now {len(training.samples)}.")
    if problems:
        new_run = shlex.join(["groundtune", "train", config.data, "--model", str(config.resume)])
        fix = f"Resume with the same options and data, or start a new run from its weights: {new_run}"
        raise ConfigError("\n  ".join([*problems, fix]))
    changes = [
        f"{name} {now[name]!r} (was {was[name]!r})"
        for name in changed
        if name not in ("output_dir", "resume", "min_steps")
    ]
    messages = [f"Changed options: {', '.join(changes)}; all others are those of the run."] if changes else []
    if "epochs" in changed:
        drop = f"at {config.lr_drop_at:.0%} of the {config.epochs} epochs"
        messages.append(f"The learning rate drops {drop}; steps that are done keep theirs.")
    return messages


def restore_state(setup: TrainSetup, state: TrainState, resumed: Resumed) -> None:
    """Restore weights, optimizer, random generators and `state`; drop later lines of the log.

    Raises:
        CheckpointError: the checkpoint is that of another model or of another version.
    """
    for message in resumed.messages:
        setup.log(message)
    if resumed.state is None:
        setup.folder.forget_after(0, -1)
    else:
        try:
            _restore(setup, state, resumed.state)
        except _MALFORMED as error:
            raise CheckpointError(
                f"The checkpoint of {setup.config.resume} is of another model, optimizer or version "
                f"({type(error).__name__}: {error})."
            ) from error
        if resumed.name == "previous" and setup.accelerator.is_main_process:  # all have read it
            os.replace(setup.folder.checkpoint("previous"), setup.folder.checkpoint("last"))
        setup.folder.forget_after(state.epoch, state.step)
    if state.epoch < setup.config.epochs:
        setup.folder.reopen()


def _restore(setup: TrainSetup, state: TrainState, content: checkpoint.State) -> None:
    source = f"the checkpoint of {setup.config.resume}"
    checkpoint.load_trained_weights(setup.network, content["network"], source)
    setup.optimizer.load_state_dict(content["optimizer"])
    setup.schedule.load_state_dict(content["schedule"])
    schedule, groups = setup.schedule, setup.optimizer.param_groups
    for group, factor, lr in zip(groups, schedule.lr_lambdas, schedule.base_lrs, strict=True):
        group["lr"] = lr * factor(schedule.last_epoch)  # another one if the number of epochs has changed
    if setup.average is not None:
        setup.average.restore(content["average"], content["average_updates"])
    if scaler := content.get("scaler"):  # of fp16
        setup.scaler.load_state_dict(scaler)
    for name, value in content["state"].items():
        if type(value) is not type(getattr(state, name)):
            raise TypeError(f"{name} is {value!r:.60}")
        setattr(state, name, value)
    state.sums = {name: value.to(setup.device) for name, value in state.sums.items()}
    state.began -= state.seconds
    rank, processes = setup.accelerator.process_index, setup.accelerator.num_processes
    epochs, random = setup.config.epochs, content["random"]
    where = f"in epoch {state.epoch + 1} of {epochs}" if state.epoch < epochs else "after the last epoch"
    setup.log(f"Resuming {where}, after step {state.step}.")
    if len(random) != processes:
        setup.log(f"There were {len(random)} processes, now {processes}: the last digits will differ.")
    if rank < len(random) and (message := checkpoint.set_random_state(random[rank])):
        setup.log(message)
