"""Every problem that reading can meet: how grave it is, what is said about it, and what the user can do.

What reading or checking a data set found, in one form: a named check, how often, where, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from groundtune.data.images import MAX_PIXELS
from groundtune.errors import escape_control_chars

Severity = Literal["error", "warning", "note"]

_EXAMPLES = 5


@dataclass
class Finding:
    """One kind of problem in one split.

    Attributes:
        check: name of the check, such as "box-outside".
        severity: "error" spoils training, "warning" deserves a look, "note" is only good to know.
        message: one sentence: what is wrong, and what was done about it.
        fix: one sentence: what the user can do.
        count: how often.
        examples: the first few places, such as "cat_12.jpg: box 3 at (10, 20, 5, 0)".
    """

    check: str
    severity: Severity
    message: str
    fix: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str) -> None:
        """Count one more; the first few are kept as examples."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(example)

    def __str__(self) -> str:
        more = f", … ({self.count} in all)" if self.count > len(self.examples) and self.examples else ""
        places = f" {', '.join(self.examples)}{more}." if self.examples else ""
        return f"{self.message}{places}"


class CheckSpec(NamedTuple):
    """What is known about a check before it finds anything; `{n}` in the message becomes the count."""

    severity: Severity
    message: str
    fix: str


class Collector:
    """Collects the places of problems by check, in the order in which the checks first found something.

    Args:
        kinds: the checks that there are.
    """

    def __init__(self, kinds: Mapping[str, CheckSpec]) -> None:
        self._kinds = kinds
        self._found: dict[str, Finding] = {}

    def add(self, check: str, example: str = "", count: int = 1) -> None:
        """Count one more, or `count` more, of a kind; without an example only the number is told."""
        finding = self._found.get(check)
        if finding is None:
            kind = self._kinds[check]
            finding = self._found[check] = Finding(check, kind.severity, kind.message, kind.fix)
        finding.count += count
        if example and len(finding.examples) < _EXAMPLES:
            finding.examples.append(escape_control_chars(example))

    def count(self, check: str) -> int:
        """How often a check has found something so far."""
        return self._found[check].count if check in self._found else 0

    def findings(self) -> list[Finding]:
        """Everything so far, the numbers filled into the messages."""
        return [
            Finding(
                f.check, f.severity, f.message.replace("{n}", str(f.count)), f.fix, f.count, list(f.examples)
            )
            for f in self._found.values()
        ]


_NOTHING = "Nothing has to be done."
_NOTHING_IF = "Nothing has to be done if that is so."
_EXPORT = "Correct the annotations, or export them again."
_EXPORT_FILES = "Export them again, or remove them."
_DRAW = "Look at these boxes in the labeling tool, and correct or delete them."
_PUT = "Put the files beside the annotations, or remove them."
_RELATIVE = "Expected file names relative to the image folder; copy the images into the data folder."
_STATE = "State width and height, which also tells how rotated images were annotated."
_CORNERS = "COCO boxes are x, y, width, height; export the annotations again, or convert them."
_SIDES = "This format's boxes are corners; export the annotations again, or convert them."
_MULTIPLY = "Multiply them by the width and height of their images, or export the annotations again."
_DIVIDE = "Divide them by the width and height of their images, or export the annotations again."
_OWN_ID = "Every image needs its own id."
_SPANS = "State tokens_positive, or correct them."

READING: dict[str, CheckSpec] = {
    "image-missing": CheckSpec("error", "{n} images of the annotations are missing.", _PUT),
    "image-outside": CheckSpec("error", "{n} image paths lead out of the data folder.", _RELATIVE),
    "image-unreadable": CheckSpec(
        "error",
        "{n} images cannot be opened, and the annotations state no size of them.",
        "Replace or remove the files.",
    ),
    "image-bomb": CheckSpec(
        "error",
        f"{{n}} images have, or are stated to have, over {MAX_PIXELS:,} pixels.",
        "Make them smaller, and export the annotations again.",
    ),
    "image-broken": CheckSpec(
        "error", "{n} images have no usable entry.", "Every image needs its own id and a file name."
    ),
    "image-id-twice": CheckSpec("error", "{n} entries use an image id again.", _OWN_ID),
    "image-size-not-stated": CheckSpec(
        "note", "{n} images without a usable width and height: taken from the images.", _STATE
    ),
    "image-ids-numbered": CheckSpec(
        "note", "image ids are not integers: numbered from 1 in the order of the file.", _NOTHING
    ),
    "annotation-missing": CheckSpec(
        "warning",
        "{n} images are listed but have no annotation file: left out.",
        "Add the files, or shorten the list.",
    ),
    "label-file-missing": CheckSpec(
        "note", "{n} images have no label file: taken as images without objects.", _NOTHING_IF
    ),
    "annotation-file-unreadable": CheckSpec("error", "{n} annotation files cannot be read.", _EXPORT_FILES),
    "annotation-broken": CheckSpec("warning", "{n} rows dropped, not an object or not readable.", _EXPORT),
    "annotation-unknown-image": CheckSpec(
        "warning", "{n} boxes dropped, its image is not in the file.", _EXPORT
    ),
    "annotation-unknown-category": CheckSpec(
        "warning", "{n} boxes dropped, its category is not in the file.", _EXPORT
    ),
    "annotation-ignored-field": CheckSpec(
        "note",
        "LVIS's lists of classes that were looked for (neg_category_ids, not_exhaustive_category_ids) are used for its "
        "numbers, where every category has a frequency; in training classes that are not annotated count as absent.",
        _NOTHING,
    ),
    "box-not-numbers": CheckSpec(
        "warning", "{n} boxes dropped, not four numbers that are all finite.", _EXPORT
    ),
    "box-inverted": CheckSpec("warning", "{n} boxes dropped, negative width or height.", _DRAW),
    "box-zero-area": CheckSpec("warning", "{n} boxes dropped, no area.", _DRAW),
    "box-outside": CheckSpec("warning", "{n} boxes dropped, outside the image.", _DRAW),
    "box-clipped": CheckSpec("warning", "{n} boxes reached beyond the image and were clipped to it.", _DRAW),
    "box-duplicate": CheckSpec(
        "warning", "{n} boxes dropped, they repeat a box of the same class in the same image.", _DRAW
    ),
    "boxes-look-xyxy": CheckSpec(
        "error",
        "the boxes look like corners x1, y1, x2, y2: read as x, y, width, height {n} of them leave the image, read as "
        "corners none does.",
        _CORNERS,
    ),
    "boxes-look-xywh": CheckSpec(
        "error",
        "the boxes look like x, y, width, height: read as corners x1, y1, x2, y2 {n} of them are inverted or outside, read as "
        "width and height none is.",
        _SIDES,
    ),
    "boxes-look-normalized": CheckSpec(
        "error",
        "all {n} boxes lie between 0 and 1, so they look like shares of the image; this format's boxes are in pixels.",
        _MULTIPLY,
    ),
    "boxes-look-pixels": CheckSpec(
        "error",
        "{n} boxes have numbers far above 1, so they look like pixels; this format's boxes are shares of the image.",
        _DIVIDE,
    ),
    "category-broken": CheckSpec(
        "error", "{n} categories have no usable 'id' and 'name'.", "Give each an id and a name."
    ),
    "category-id-twice": CheckSpec(
        "error", "{n} category ids have two names.", "Every class needs its own id."
    ),
    "category-ids-numbered": CheckSpec(
        "note", "category ids are not integers: numbered from 1 in the order of the file.", _NOTHING
    ),
    "category-placeholder": CheckSpec(
        "note", "ignored, without boxes and only the parent of the others: placeholder category", _NOTHING
    ),
    "names-merged": CheckSpec(
        "warning",
        "{n} classes have several names that read the same after cleaning: they are one class.",
        "Rename them.",
    ),
    "crowd-regions": CheckSpec(
        "note",
        "{n} boxes stand for groups (iscrowd) or are marked difficult: not trained on, not counted in evaluation.",
        _NOTHING,
    ),
    "span-outside-caption": CheckSpec(
        "warning", "{n} character spans dropped, they do not lie in the caption or hold no letter.", _EXPORT
    ),
    "phrase-not-in-caption": CheckSpec(
        "warning", "{n} phrases dropped, their words do not stand in the caption.", _SPANS
    ),
    "caption-missing": CheckSpec("warning", "{n} images have no caption and were left out.", _EXPORT),
    "segments-to-boxes": CheckSpec("note", "{n} outlines became the boxes around them.", _NOTHING),
}

FATAL = [
    "annotation-file-unreadable",
    "image-broken",
    "image-id-twice",
    "category-broken",
    "category-id-twice",
]
FATAL += ["image-outside", "image-missing", "image-unreadable", "image-bomb"]
"""What ends the reading of a data set for training, all of it told at once; `check` goes on without these images."""
