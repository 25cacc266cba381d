"""Run the checks: the fast ones before every training, all of them in `groundtune check`."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers import BertTokenizer

from groundtune.data.check.boxes import check_boxes, check_grounding
from groundtune.data.check.images import ImageFacts, check_depth, check_duplicates, check_images, read_images
from groundtune.data.check.kinds import CHECKING, CHECKS, ModelLimits
from groundtune.data.check.names import check_names, check_split, check_splits, count_boxes, read_tokens
from groundtune.data.problems import Collector, Finding, Severity
from groundtune.data.sample import Dataset
from groundtune.errors import ConfigError, DataError, suggestion

_OF_SPLITS = ("split-made", "category-not-listed", "data-mixed")
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class SplitFinding(NamedTuple):
    """A finding and its split; "" for all splits together."""

    split: str
    finding: Finding


@dataclass
class Report:
    """The result of checking a data set."""

    data: str  # name of the data set
    images: dict[str, int] = field(default_factory=dict)  # number in each split
    boxes: dict[str, int] = field(default_factory=dict)  # number in each split
    classes: list[dict[str, Any]] = field(default_factory=list)  # as in `describe_classes`
    findings: list[SplitFinding] = field(default_factory=list)  # errors first, then warnings, then notes

    def count(self, severity: Severity) -> int:
        """Return the number of checks of a severity that found something."""
        return len({finding.check for _, finding in self.findings if finding.severity == severity})

    def ignore(self, checks: Sequence[str]) -> None:
        """Remove the findings of some checks."""
        self.findings = [located for located in self.findings if located.finding.check not in checks]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as values that JSON has."""
        return {
            "data": self.data,
            "splits": {name: {"images": n, "boxes": self.boxes[name]} for name, n in self.images.items()},
            **{f"{severity}s": self.count(severity) for severity in SEVERITIES},
            "findings": [{"split": split or None, **asdict(finding)} for split, finding in self.findings],
            "classes": self.classes,
        }


def check_data(
    data: str,
    splits: Mapping[str, Dataset],
    limits: ModelLimits,
    *,
    files: bool,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Run all checks of splits that have one class list, "train" first.

    Args:
        data: name of the data set in the report.
        files: whether to decode every image.
        workers: number of threads; 0 means one per core, at most 8 (large images need memory).
        progress: called with the number of decoded images and of all images.
    """
    findings = _check_annotations(splits, limits)
    if files:
        findings += _check_files(splits, workers or min(8, os.cpu_count() or 1), progress)
    return Report(
        data,
        images={name: len(dataset.samples) for name, dataset in splits.items()},
        boxes={name: sum(len(s.boxes_xyxy) for s in dataset.samples) for name, dataset in splits.items()},
        classes=describe_classes(splits, limits.tokenizer),
        findings=_by_severity(findings),
    )


def raise_for_errors(splits: Mapping[str, Dataset], limits: ModelLimits) -> list[str]:
    """Run the checks that decode no image, and return the names of those that warn.

    Images of more than 8 bits become findings of their splits.

    Raises:
        DataError: there are errors. All are listed, each with its fix.
    """
    for dataset in splits.values():
        problems = Collector(CHECKING)
        check_depth(dataset, problems)
        dataset.findings += problems.findings()
    findings = _by_severity(_check_annotations(splits, limits))
    errors = [
        f"{split and split + ': '}{finding} {finding.fix}"
        for split, finding in findings
        if finding.severity == "error" and split != "test"  # which training does not use
    ]
    if errors:
        lines = [f"{len(errors)} problems with the data:", *errors] if len(errors) > 1 else errors
        raise DataError("\n  ".join(lines))
    return [finding.check for _, finding in findings if finding.severity == "warning"]


def unreadable(data: str, error: DataError) -> Report:
    """Return the report of a data set that cannot be read."""
    finding = Finding("data-unreadable", *CHECKING["data-unreadable"], count=1, examples=[str(error)])
    return Report(data, findings=[SplitFinding("", finding)])


def known_checks(names: Sequence[str]) -> None:
    """Raise a `ConfigError` if names are not names of checks, with the nearest known ones."""
    unknown = [name for name in names if name not in (*CHECKS, *_OF_SPLITS)]
    if unknown:
        problems = " ".join(f"there is no check {name!r}.{suggestion(name, CHECKS)}" for name in unknown)
        expected = "Expected names that `groundtune check` prints before its findings."
        raise ConfigError(f"ignore: {problems} {expected}")


def _by_severity(findings: Sequence[SplitFinding]) -> list[SplitFinding]:
    return sorted(findings, key=lambda located: SEVERITIES.index(located.finding.severity))


def _check_annotations(splits: Mapping[str, Dataset], limits: ModelLimits) -> list[SplitFinding]:
    """Run the checks that open no image, and add the findings of reading."""
    problems = Collector(CHECKING)
    if splits:
        check_names(next(iter(splits.values())), limits, problems)
    check_splits(splits, problems)
    findings = [SplitFinding("", finding) for finding in problems.findings()]
    for name, dataset in splits.items():
        problems = Collector(CHECKING)
        check_split(dataset, problems)
        check_grounding(dataset, problems)
        check_boxes(dataset, limits, problems)
        findings += [SplitFinding(name, finding) for finding in [*dataset.findings, *problems.findings()]]
    return findings


def _check_files(
    splits: Mapping[str, Dataset], threads: int, progress: Callable[[int, int], None] | None
) -> list[SplitFinding]:
    """Run the checks that decode every image."""
    paths = list(dict.fromkeys(s.image_path for dataset in splits.values() for s in dataset.samples))
    facts: dict[Path, ImageFacts] = {}
    for path, fact in read_images(paths, threads):
        facts[path] = fact
        if progress is not None:
            progress(len(facts), len(paths))
    findings = []
    for index, (name, dataset) in enumerate(splits.items()):
        problems = Collector(CHECKING)
        check_images(dataset, facts, problems)
        check_duplicates(dataset, list(splits.values())[:index], facts, problems)
        findings += [SplitFinding(name, finding) for finding in problems.findings()]
    return findings


def describe_classes(splits: Mapping[str, Dataset], tokenizer: BertTokenizer) -> list[dict[str, Any]]:
    """Return id, name, phrase in the prompt, tokens, and boxes per split of each class."""
    if not splits:
        return []
    first = next(iter(splits.values()))
    counts = {split: count_boxes(dataset).tolist() for split, dataset in splits.items()}
    phrases = first.phrases
    tokens = read_tokens(phrases, tokenizer)
    return [
        {
            "id": first.category_ids[index],
            "name": name,
            "prompt": phrases[index],
            "tokens": tokens[index],
            "boxes": {split: boxes[index] for split, boxes in counts.items()},
        }
        for index, name in enumerate(first.class_names)
    ]
