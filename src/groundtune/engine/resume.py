"""The state of a run between two processes: what `checkpoints/last.pt` holds, and whether another run may go on from it."""

from dataclasses import asdict
from pathlib import Path

from groundtune.config import TrainConfig
from groundtune.data.sample import Dataset
from groundtune.engine import checkpoint
from groundtune.engine.run import Place, Run
from groundtune.errors import CheckpointError, ConfigError

# Options that a resumed run may change: where and how fast it runs, not what it computes.
_FREE_OPTIONS = {
    "data",
    "model",
    "out",
    "resume",
    "device",
    "workers",
    "threads",
    "log_every",
    "max_bad_steps",
    "track",
}


def refuse_changes(config: TrainConfig, training: Dataset, state: checkpoint.State, out: Path) -> None:
    """A resumed run must compute what the uninterrupted one would have, and go on in the same folder."""
    assert config.resume is not None
    if Path(config.resume).resolve() != out.resolve():
        raise ConfigError(f"resume: a run goes on in its own folder {config.resume}, not in {out}. Leave out away.")
    if "config" not in state:
        raise CheckpointError(f"resume: last.pt of {config.resume} has weights only, not the state of a run.")
    was, now = asdict(TrainConfig(config.data)) | state["config"], asdict(config)  # an older run has fewer options
    problems = [
        f"resume: {name} was {was[name]!r} and is now {now[name]!r}."
        for name in now
        if name not in _FREE_OPTIONS and was[name] != now[name]
    ]
    if state["classes"] != training.class_names:
        problems.append(f"resume: the classes were {state['classes']} and are now {training.class_names}.")
    if state["pictures"] != len(training.samples):
        problems.append(f"resume: there were {state['pictures']} training pictures, now {len(training.samples)}.")
    if problems:
        raise ConfigError("\n  ".join([*problems, "Go on with the same options and data, or start a new run."]))


def restore(run: Run, place: Place, state: checkpoint.State) -> None:
    """Takes up the state that `save_last` wrote."""
    source = f"The checkpoint of {run.config.resume}"
    checkpoint.load_trained_state(run.network, state["network"], source)
    try:
        run.optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        raise CheckpointError(f"{source} has another optimiser's state: {error}.") from error
    run.schedule.load_state_dict(state["schedule"])
    if run.average is not None:
        run.average.restore(state["average"], state["average_updates"])
    for name, value in state["place"].items():
        setattr(place, name, value)
    checkpoint.set_random_state(state["random"])
    run.folder.forget_after(place.step)
    run.say(f"Going on after epoch {place.epoch} of {run.config.epochs}, step {place.step}.")


def save_last(run: Run, place: Place) -> None:
    """Writes everything that goes on after the end of an epoch."""
    if not run.accelerator.is_main_process:
        return
    state = {
        "config": asdict(run.config),
        "classes": run.bundle.classes,
        "pictures": len(run.loader.dataset.samples),
        "epoch": place.epoch,
        "place": asdict(place),
        "network": checkpoint.trained_state(run.network),
        "optimizer": run.optimizer.state_dict(),
        "schedule": run.schedule.state_dict(),
        "average": None if run.average is None else run.average.average,
        "average_updates": 0 if run.average is None else run.average.updates,
        "random": checkpoint.random_state(),
    }
    checkpoint.save_state(state, run.folder.checkpoint("last"))
