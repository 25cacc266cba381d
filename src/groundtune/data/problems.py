"""Problems of data sets: their form, and the table of those that reading can find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from groundtune.data.images import MAX_PIXELS
from groundtune.errors import escape_control_chars

Severity = Literal["error", "warning", "note"]

_MAX_EXAMPLES = 5
_MAX_LENGTH = 2000  # characters of an example


@dataclass
class Finding:
    """One kind of problem in one split.

    Attributes:
        check: code of the check, such as "box-outside".
        severity: "error" prevents training, "warning" may harm the result, "note" is information.
        message: what is wrong, and how it was handled.
        fix: what the user can do.
        count: number of occurrences.
        examples: the first few occurrences, such as "cat_12.jpg: box 3 at (10, 20, 5, 0)".
    """

    check: str
    severity: Severity
    message: str
    fix: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        more = f", … ({self.count} in all)" if self.count > len(self.examples) and self.examples else ""
        return f"{self.message} {', '.join(self.examples)}{more}." if self.examples else self.message


class CheckSpec(NamedTuple):
    """Severity and texts of a check; `{n}` in the message becomes the number of occurrences."""

    severity: Severity
    message: str
    fix: str


class Collector:
    """Counts occurrences of problems by check, in the order of their first occurrences.

    Args:
        specs: all checks by their codes.
    """

    def __init__(self, specs: Mapping[str, CheckSpec]) -> None:
        self._specs = specs
        self._found: dict[str, Finding] = {}

    def add(self, check: str, example: str = "", count: int = 1) -> None:
        """Count `count` more occurrences; the first few examples are kept."""
        finding = self._found.setdefault(check, Finding(check, *self._specs[check]))
        finding.count += count
        if example and len(finding.examples) < _MAX_EXAMPLES:
            shown = example if len(example) <= _MAX_LENGTH else f"{example[: _MAX_LENGTH - 3]}..."
            finding.examples.append(escape_control_chars(shown))

    def extend(self, other: Collector) -> None:
        """Add what another collector has found."""
        for check, finding in other._found.items():
            own = self._found.setdefault(check, replace(finding, count=0, examples=[]))
            own.count += finding.count
            own.examples = [*own.examples, *finding.examples][:_MAX_EXAMPLES]

    def count(self, check: str) -> int:
        """Return the number of occurrences so far."""
        return self._found[check].count if check in self._found else 0

    def soften(self, check: str) -> None:
        """Make the problem a warning, if it occurred."""
        if check in self._found:
            self._found[check].severity = "warning"

    def findings(self) -> list[Finding]:
        """Return all findings so far, with the numbers in their messages."""
        return [
            replace(found, message=found.message.replace("{n}", str(found.count)), examples=[*found.examples])
            for found in self._found.values()
        ]


_EXPORT = "Correct the annotations, or export them again."
_DRAW = "Check these boxes in the labeling tool; correct or delete them."
_NO_ACTION = "No action is needed."

_UNUSABLE = {
    "annotation-file-unreadable": ("{n} annotation files cannot be read.", "Export or remove them."),
    "image-broken": ("{n} images have no usable entry.", "Give each image its own id and a file name."),
    "image-id-twice": ("{n} entries repeat the id of another image.", "Give each image its own id."),
    "category-broken": ("{n} categories have no usable 'id' and 'name'.", "Give each an id and a name."),
    "category-id-twice": ("{n} category ids have two names.", "Give each class its own id."),
    "image-outside": (
        "{n} image paths lead out of the data folder.",
        "Copy the images into the data folder, and use file names relative to it.",
    ),
    "image-missing": ("{n} images of the annotations are missing.", "Add them, or remove their entries."),
    "image-ambiguous": (
        "{n} image names fit several files.",
        "State paths relative to the data folder in the annotations.",
    ),
    "image-unreadable": ("{n} images without a stated size cannot be opened.", "Replace or remove them."),
    "image-bomb": (
        f"{{n}} images have, or are stated to have, over {MAX_PIXELS:,} pixels.",
        "Make them smaller, and export the annotations again.",
    ),
}
_ERRORS = {
    "boxes-look-xyxy": (
        "the boxes look like corners x1, y1, x2, y2: read as x, y, width, height {n} of them leave the "
        "image, read as corners none does.",
        "COCO boxes are x, y, width, height; export the annotations again, or convert them.",
    ),
    "boxes-look-xywh": (
        "the boxes look like x, y, width, height: read as corners x1, y1, x2, y2 {n} of them are inverted "
        "or leave the image, read as width and height none does.",
        "The boxes of this format are corners; export the annotations again, or convert them.",
    ),
    "boxes-look-normalized": (
        "all {n} boxes are between 0 and 1, so they look normalized; the boxes of this format are in pixels.",
        "Multiply them by the width and height of their images, or export the annotations again.",
    ),
    "boxes-look-pixels": (
        "{n} boxes have numbers far above 1, so they look like pixels; the boxes of this format are "
        "normalized.",
        "Divide them by the width and height of their images, or export the annotations again.",
    ),
}
_WARNINGS = {
    "image-format-unread": ("{n} images skipped: their format is not read.", "Convert them to JPEG or PNG."),
    "label-without-image": ("{n} label files skipped: no image.", "Add the images, or remove the files."),
    "path-missing": ("{n} paths that the file names do not exist.", "Add them, or remove their names."),
    "annotation-missing": ("{n} images skipped: no annotation file.", "Add the files, or shorten the list."),
    "annotation-broken": ("{n} rows dropped: not an object or not readable.", _EXPORT),
    "annotation-unknown-image": ("{n} boxes dropped: their image is not in the file.", _EXPORT),
    "annotation-unknown-category": ("{n} boxes dropped: their category is not in the file.", _EXPORT),
    "box-not-numbers": ("{n} boxes dropped: not four finite numbers.", _EXPORT),
    "box-inverted": ("{n} boxes dropped: negative width or height.", _DRAW),
    "box-zero-area": ("{n} boxes dropped: no area.", _DRAW),
    "box-outside": ("{n} boxes dropped: outside the image.", _DRAW),
    "box-clipped": ("{n} boxes reached beyond the image and were clipped to it.", _DRAW),
    "box-duplicate": ("{n} boxes dropped: duplicates of a box of the same class.", _DRAW),
    "names-merged": ("{n} classes have the name of another one and are one class with it:", "Rename them."),
    "span-outside-caption": ("{n} spans dropped: outside the caption or without a letter.", _EXPORT),
    "phrase-not-in-caption": (
        "{n} phrases dropped: not in the caption.",
        "Correct them, or state tokens_positive.",
    ),
    "image-entry-twice": (
        "{n} images have several entries: their boxes were joined.",
        "Give each image one entry.",
    ),
    "caption-missing": ("{n} images skipped: no caption.", _EXPORT),
    "shape-without-box": ("{n} shapes dropped: lines, points and the like have no box.", "Draw boxes."),
    "image-skipped": ("{n} images skipped:", "Finish them in the labeling tool, and export again."),
    "image-without-split": (
        "{n} images of other subsets, or in no list of a split, are not used.",
        "Name all subsets after splits, or complete the lists.",
    ),
    "annotation-repeated": ("{n} images have several annotations: the first is used.", "Delete the others."),
    "class-attribute-chosen": ("several attributes may be the class:", "Delete the others."),
    "class-not-stated": ("{n} boxes have no class, and are of 'object'.", "Use --rename object=balloon."),
}
_NOTES = {
    "image-size-not-stated": (
        "{n} images without a usable width and height: taken from the images.",
        "State width and height, which also shows how rotated images were annotated.",
    ),
    "image-path-resolved": (
        "{n} image paths are of another machine or folder: resolved by the end of the path.",
        "Check a few of them.",
    ),
    "image-ids-numbered": ("image ids are not integers: numbered from 1 in file order.", _NO_ACTION),
    "category-ids-numbered": ("category ids are not integers: numbered from 1 in file order.", _NO_ACTION),
    "category-placeholder": ("category ignored, only the parent of others, without boxes:", _NO_ACTION),
    "label-file-missing": (
        "{n} images have no label file and count as empty.",
        "No action is needed if they are.",
    ),
    "annotation-ignored-field": (
        "neg_category_ids and not_exhaustive_category_ids of LVIS say which classes an image lacks; the "
        "others are neither taught nor counted there. LVIS's own metrics need a frequency per category.",
        _NO_ACTION,
    ),
    "annotations-unused": ("{n} annotations of other formats are not used:", "Choose with --format."),
    "annotation-files-joined": (
        "{n} annotation files name different images, and are read as one set:",
        "Give the path of one if they are not.",
    ),
    "crowd-regions": (
        "{n} boxes are groups (iscrowd) or marked difficult: not used in training, ignored in evaluation.",
        _NO_ACTION,
    ),
    "key-points-ignored": ("{n} rows have key points behind the box, which are not used.", _NO_ACTION),
    "segments-to-boxes": ("{n} outlines were replaced by their bounding boxes.", _NO_ACTION),
    "rotated-to-boxes": ("{n} rotated boxes were replaced by the upright boxes around them.", _NO_ACTION),
    "predictions-ignored": ("{n} images have predictions of a model, which are not used.", _NO_ACTION),
}

READING: dict[str, CheckSpec] = {
    **{check: CheckSpec("error", *texts) for check, texts in (_UNUSABLE | _ERRORS).items()},
    **{check: CheckSpec("warning", *texts) for check, texts in _WARNINGS.items()},
    **{check: CheckSpec("note", *texts) for check, texts in _NOTES.items()},
}

FATAL = list(_UNUSABLE)
"""Checks that prevent reading for training; `groundtune check` skips these images instead."""
