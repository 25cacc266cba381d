"""The state of a run between two processes: what `checkpoints/last.pt` holds, and whether another run may go on from it.

The state before it stays as `previous.pt`, for the day on which the newest is damaged. A run that was killed before its first
checkpoint begins again in its folder.
"""

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from accelerate.utils import gather_object

from groundtune.config import TrainConfig
from groundtune.data.sample import Dataset
from groundtune.engine import checkpoint
from groundtune.engine.setup import TrainSetup, TrainState
from groundtune.errors import CheckpointError, ConfigError

# Options that a resumed run may change: where and how fast it runs, not what it computes.
_FREE_OPTIONS = {
    "data",
    "model",
    "output_dir",
    "resume",
    "device",
    "devices",
    "workers",
    "threads",
    "micro_batch_size",
    "log_steps",
    "save_steps",
    "max_nonfinite_steps",
    "max_unreadable_share",
    "gradient_checkpointing",
    "report_to",
}
# What values of other types raise: a checkpoint may come from anywhere.
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


class Resumed(NamedTuple):
    """Where a run goes on: the newest whole state, None for the beginning; its file; and what there is to say about it."""

    state: checkpoint.State | None
    name: str
    notes: list[str]


def command_to_go_on(config: TrainConfig, out: Path) -> str:
    """What a user types to resume the run."""
    return shlex.join(["groundtune", "train", config.data, "--resume", str(out)])


def newest_state(config: TrainConfig, training: Dataset, classes: list[str], out: Path) -> Resumed:
    """Reads the state that a run goes on from; `config.resume` is None for a new one.

    Raises:
        ConfigError, CheckpointError: what goes on would be another run.
    """
    if config.resume is None:
        return Resumed(None, "", [])
    if Path(config.resume).resolve() != out.resolve():
        raise ConfigError(
            f"resume: a run goes on in its own folder {config.resume}, not in {out}. Leave out away."
        )
    notes = []
    for name in ("last", "previous"):
        try:
            state = checkpoint.load_state(out / "checkpoints" / f"{name}.pt")
        except CheckpointError as error:
            notes.append(f"{error} Looking for an earlier one.")
            continue
        try:
            return Resumed(state, name, notes + _refuse_changes(config, training, classes, state))
        except _MALFORMED as error:
            raise CheckpointError(
                f"resume: the {name} checkpoint of {out} is incomplete ({error!r:.100})."
            ) from error
    return Resumed(None, "", [*notes, f"No checkpoint of {out} can be read: the run begins again."])


def _refuse_changes(
    config: TrainConfig, training: Dataset, classes: list[str], state: checkpoint.State
) -> list[str]:
    """A resumed run must compute what the uninterrupted one would have; says which of the other options have changed."""
    if "config" not in state:
        raise CheckpointError(
            f"resume: the checkpoint of {config.resume} has weights only, not the state of a run."
        )
    was, now = (
        asdict(TrainConfig(data=config.data)) | state["config"],
        asdict(config),
    )  # an older run has fewer options
    changed = [name for name in now if was[name] != now[name]]
    problems = [
        f"resume: {name} was {was[name]!r} and is now {now[name]!r}."
        for name in changed
        if name not in _FREE_OPTIONS
    ]
    if state["classes"] != classes:
        problems.append(f"resume: the classes were {state['classes']} and are now {classes}.")
    if state["images"] != len(training.samples):
        problems.append(f"resume: there were {state['images']} training images, now {len(training.samples)}.")
    if problems:
        raise ConfigError(
            "\n  ".join([*problems, "Go on with the same options and data, or start a new run."])
        )
    taken = [
        f"{name} {now[name]!r} (was {was[name]!r})"
        for name in changed
        if name not in ("output_dir", "resume")
    ]
    return [f"Taken from now: {', '.join(taken)}; all else is kept from the run."] if taken else []


def restore_state(run: TrainSetup, place: TrainState, resumed: Resumed) -> None:
    """Goes on from a state, or begins; what the run folder has of the time after that is forgotten.

    Raises:
        CheckpointError: the state is that of another model or of another version.
    """
    for note in resumed.notes:
        run.say(note)
    if resumed.state is None:
        run.folder.forget_after(0, -1)
    else:
        try:
            _restore(run, place, resumed.state)
        except _MALFORMED as error:
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(
                f"The checkpoint of {run.config.resume} is of another model, optimizer or version ({reason})."
            ) from error
        if (
            resumed.name == "previous" and run.accelerator.is_main_process
        ):  # all have read it: set-up waits for all
            os.replace(run.folder.checkpoint("previous"), run.folder.checkpoint("last"))
        run.folder.forget_after(place.epoch, place.step)
    if place.epoch < run.config.epochs:
        run.folder.reopen()


def _restore(run: TrainSetup, place: TrainState, state: checkpoint.State) -> None:
    checkpoint.load_trained_state(run.network, state["network"], f"The checkpoint of {run.config.resume}")
    run.optimizer.load_state_dict(state["optimizer"])
    run.schedule.load_state_dict(state["schedule"])
    if run.average is not None:
        run.average.restore(state["average"], state["average_updates"])
    for name, value in state["place"].items():
        if type(value) is not type(getattr(place, name)):
            raise TypeError(f"{name} is {value!r:.60}")
        setattr(place, name, value)
    place.sums = {name: value.to(run.accelerator.device) for name, value in place.sums.items()}
    rank, processes, epochs = run.accelerator.process_index, run.accelerator.num_processes, run.config.epochs
    where = f"in epoch {place.epoch + 1} of {epochs}" if place.epoch < epochs else "after the last epoch"
    run.say(f"Going on {where}, after step {place.step}.")
    if len(state["random"]) != processes:
        run.say(f"There were {len(state['random'])} processes, now {processes}: the last digits will differ.")
    if rank < len(state["random"]):
        checkpoint.set_random_state(state["random"][rank])


def save_last(run: TrainSetup, place: TrainState) -> None:
    """Writes everything that a run needs to go on after a step. Every process must call this."""
    random = gather_object([checkpoint.random_state()])
    if not run.accelerator.is_main_process:
        return
    state = {
        "config": asdict(run.config),
        "classes": run.bundle.classes,
        "images": len(run.loader.dataset.samples),
        "epoch": place.epoch,
        "place": asdict(place),
        "network": checkpoint.trained_state(run.network),
        "optimizer": run.optimizer.state_dict(),
        "schedule": run.schedule.state_dict(),
        "average": None if run.average is None else run.average.average,
        "average_updates": 0 if run.average is None else run.average.updates,
        "random": random,
    }
    checkpoint.save_state(state, run.folder.checkpoint("last"), previous=run.folder.checkpoint("previous"))
