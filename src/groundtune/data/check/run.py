"""All checks of a data set, one after the other: the fast ones for every training run, all of them for `groundtune check`.

What checking found, in a form for programs; `text` makes it readable.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers import BertTokenizer

from groundtune.data.check.boxes import check_boxes, check_grounding
from groundtune.data.check.images import ImageFacts, check_images, check_twins, read_images
from groundtune.data.check.kinds import CHECKING, CHECKS
from groundtune.data.check.names import check_names, check_split, check_splits, count_boxes, read_tokens
from groundtune.data.problems import Collector, Finding, Severity
from groundtune.data.sample import Dataset
from groundtune.errors import ConfigError, DataError, suggestion

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class SplitFinding(NamedTuple):
    """A finding and the split that it is in; "" where it concerns all of them."""

    split: str
    finding: Finding


@dataclass
class Report:
    """What checking found."""

    data: str  # what was checked
    images: dict[str, int] = field(default_factory=dict)  # of each split
    boxes: dict[str, int] = field(default_factory=dict)  # of each split
    classes: list[dict[str, Any]] = field(default_factory=list)  # as in `run.describe_classes`
    findings: list[SplitFinding] = field(default_factory=list)  # errors first, then warnings, then notes

    def count(self, severity: Severity) -> int:
        """How many checks found something of a severity, in whatever number of splits."""
        return len(
            {located.finding.check for located in self.findings if located.finding.severity == severity}
        )

    def leave_out(self, checks: Sequence[str]) -> None:
        """Take the findings of some checks out."""
        self.findings = [located for located in self.findings if located.finding.check not in checks]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "data": self.data,
            "splits": {
                name: {"images": self.images[name], "boxes": self.boxes[name]} for name in self.images
            },
            **{f"{severity}s": self.count(severity) for severity in SEVERITIES},
            "findings": [
                {"split": located.split or None, **asdict(located.finding)} for located in self.findings
            ],
            "classes": self.classes,
        }


def by_severity(findings: Sequence[SplitFinding]) -> list[SplitFinding]:
    """Put errors before warnings before notes; otherwise the order stays."""
    return sorted(findings, key=lambda located: SEVERITIES.index(located.finding.severity))


def unreadable(data: str, error: DataError) -> Report:
    """The report of a data set that could not be read."""
    finding = Finding("data-unreadable", *CHECKING["data-unreadable"], count=1, examples=[str(error)])
    return Report(data, findings=[SplitFinding("", finding)])


@dataclass(frozen=True)
class ModelLimits:
    """What a model can take."""

    tokenizer: BertTokenizer  # of its language model
    max_text_len: int  # most tokens of a prompt with [CLS] and [SEP]
    num_queries: int  # most objects that it finds in an image
    short_side: int  # of its images, pixels
    max_side: int


def check_data(
    data: str,
    splits: Mapping[str, Dataset],
    limits: ModelLimits,
    *,
    files: bool = True,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Run all checks.

    Args:
        data: what to call the data set.
        splits: with one class list, "train" first.
        limits: of the model.
        files: also decode every image.
        workers: threads; 0 takes as many as there are cores, at most 8 (a large image takes hundreds of MB).
        progress: told about images done, and images in all.
    """
    findings = _check_fast(splits, limits)
    if files:
        findings += _check_files(splits, workers or min(8, os.cpu_count() or 1), progress)
    return Report(
        data,
        images={name: len(dataset.samples) for name, dataset in splits.items()},
        boxes={name: sum(len(s.boxes_xyxy) for s in dataset.samples) for name, dataset in splits.items()},
        classes=describe_classes(splits, limits.tokenizer),
        findings=by_severity(findings),
    )


def _check_fast(splits: Mapping[str, Dataset], limits: ModelLimits) -> list[SplitFinding]:
    """Run the checks that open no image, and add what reading found."""
    found = Collector(CHECKING)
    for first in list(splits.values())[:1]:
        check_names(first.class_names, first.written_names, limits.tokenizer, limits.max_text_len, found)
    check_splits(splits, found)
    findings = [SplitFinding("", finding) for finding in found.findings()]
    for name, dataset in splits.items():
        found = Collector(CHECKING)
        check_split(dataset, found)
        check_grounding(dataset, found)
        check_boxes(dataset, limits.short_side, limits.max_side, limits.num_queries, found)
        findings += [SplitFinding(name, finding) for finding in [*dataset.findings, *found.findings()]]
    return findings


def _check_files(
    splits: Mapping[str, Dataset], workers: int, progress: Callable[[int, int], None] | None
) -> list[SplitFinding]:
    """Run the checks that decode every image."""
    paths = list(dict.fromkeys(s.image_path for dataset in splits.values() for s in dataset.samples))
    facts: dict[Path, ImageFacts] = {}
    for path, fact in read_images(paths, workers):
        facts[path] = fact
        if progress is not None:
            progress(len(facts), len(paths))
    findings = []
    for place, (name, dataset) in enumerate(splits.items()):
        found = Collector(CHECKING)
        check_images(dataset, facts, found)
        check_twins(dataset, list(splits.values())[:place], facts, found)
        findings += [SplitFinding(name, finding) for finding in found.findings()]
    return findings


def known_checks(names: Sequence[str]) -> None:
    """Make sure that there are checks of these names.

    Raises:
        ConfigError: there are not; all of them are listed, each with the nearest one that there is.
    """
    unknown = [
        f"there is no check {name!r}.{suggestion(name, CHECKS)}" for name in names if name not in CHECKS
    ]
    if unknown:
        raise ConfigError(
            f"ignore: {' '.join(unknown)} The names are those before the findings of groundtune check."
        )


def raise_for_errors(splits: Mapping[str, Dataset], limits: ModelLimits) -> list[str]:
    """Run the fast checks before training, and give the names of those that warn.

    Raises:
        DataError: there are errors. All are told, each with its fix.
    """
    findings = by_severity(_check_fast(splits, limits))
    errors = [located for located in findings if located.finding.severity == "error"]
    lines = [f"{split and split + ': '}{finding} {finding.fix}" for split, finding in errors]
    if lines:
        raise DataError(
            "\n  ".join([f"{len(lines)} problems with the data:", *lines]) if lines[1:] else lines[0]
        )
    return [located.finding.check for located in findings if located.finding.severity == "warning"]


def describe_classes(splits: Mapping[str, Dataset], tokenizer: BertTokenizer) -> list[dict[str, Any]]:
    """Say of each class what the model will read: id, name as written, name in the prompt, tokens, boxes per split."""
    first = next(iter(splits.values()), None)
    if first is None:
        return []
    names, counts = (
        first.class_names,
        {split: count_boxes(dataset).tolist() for split, dataset in splits.items()},
    )
    boxes = [dict(zip(counts, numbers, strict=True)) for numbers in zip(*counts.values(), strict=True)]
    written = first.written_names or names
    rows = zip(first.category_ids, written, names, read_tokens(names, tokenizer), boxes, strict=True)
    return [dict(zip(("id", "name", "prompt", "tokens", "boxes"), row, strict=True)) for row in rows]
