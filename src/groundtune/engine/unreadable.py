"""Pictures that turn out unreadable in the middle of a run: left out, told by name, and too many of them end it.

In training such a picture is missing from its batch; in an evaluation on the way it counts as one without detections.
"""

from collections.abc import Mapping

from groundtune.data.sample import Dataset
from groundtune.engine.run import Run
from groundtune.errors import DataError

_SHOWN = 5  # pictures that are told on the terminal; all of them stand in train.log


def leave_out(run: Run, dataset: Dataset, found: Mapping[str, str]) -> None:
    """Tell of the pictures that were not told of yet.

    Args:
        dataset: their split.
        found: path of each picture, and why it cannot be read; the same on all processes.

    Raises:
        DataError: they are more than `config.max_bad_pictures` allows.
    """
    known = run.unreadable.setdefault(dataset.name, {})
    for path, reason in found.items():
        if path in known:
            continue
        known[path] = reason
        text = f"A picture of {dataset.name} is left out: {reason}"
        if len(known) < _SHOWN:
            run.say(text)
        elif len(known) == _SHOWN:
            run.say(f"{text} Further ones are listed in {run.folder.path / 'train.log'} only.")
        else:
            run.folder.log(text)
    share, pictures = run.config.max_bad_pictures, len(dataset.samples)
    allowed = max(1, int(share * pictures)) if share else 0
    if len(known) > allowed:
        raise DataError(
            f"{len(known)} of {pictures} pictures of {dataset.name} cannot be read, where max_bad_pictures {share:g} allows "
            f"{allowed}: the last one is {list(known)[-1]}, all are listed in {run.folder.path / 'train.log'}. Repair or "
            "remove them (`groundtune check` finds them all), or allow more with --max-bad-pictures."
        )
