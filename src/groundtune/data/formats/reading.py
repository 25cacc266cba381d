"""Every problem that reading can meet: how grave it is, what is said about it, and what the user can do."""

from groundtune.data.findings import Kind
from groundtune.data.picture_files import MAX_PIXELS

_NOTHING = "Nothing has to be done."
_NOTHING_IF = "Nothing has to be done if that is so."
_EXPORT = "Correct the annotations, or export them again."
_EXPORT_FILES = "Export them again, or remove them."
_DRAW = "Look at these boxes in the labelling tool, and correct or delete them."
_PUT = "Put the files beside the annotations, or remove them."
_RELATIVE = "Expected file names relative to the picture folder; copy the pictures into the data folder."
_STATE = "State width and height, which also tells how rotated pictures were annotated."
_CORNERS = "COCO boxes are x, y, width, height; export the annotations again, or convert them."
_SIDES = "This format's boxes are corners; export the annotations again, or convert them."
_MULTIPLY = "Multiply them by the width and height of their pictures, or export the annotations again."
_DIVIDE = "Divide them by the width and height of their pictures, or export the annotations again."
_OWN_ID = "Every picture needs its own id."
_SPANS = "State tokens_positive, or correct them."

READING: dict[str, Kind] = {
    "picture-missing": Kind("error", "{n} pictures of the annotations are missing.", _PUT),
    "picture-outside": Kind("error", "{n} picture paths lead out of the data folder.", _RELATIVE),
    "picture-unreadable": Kind(
        "error",
        "{n} pictures cannot be opened, and the annotations state no size of them.",
        "Replace or remove the files.",
    ),
    "picture-bomb": Kind(
        "error",
        f"{{n}} pictures have, or are stated to have, over {MAX_PIXELS:,} pixels.",
        "Make them smaller, and export the annotations again.",
    ),
    "picture-broken": Kind(
        "error", "{n} pictures have no usable entry.", "Every picture needs its own id and a file name."
    ),
    "picture-id-twice": Kind("error", "{n} entries use a picture id again.", _OWN_ID),
    "picture-size-not-stated": Kind(
        "note", "{n} pictures without a usable width and height: taken from the pictures.", _STATE
    ),
    "picture-ids-numbered": Kind(
        "note", "picture ids are not integers: numbered from 1 in the order of the file.", _NOTHING
    ),
    "annotation-missing": Kind(
        "warning",
        "{n} pictures are listed but have no annotation file: left out.",
        "Add the files, or shorten the list.",
    ),
    "label-file-missing": Kind(
        "note", "{n} pictures have no label file: taken as pictures without objects.", _NOTHING_IF
    ),
    "annotation-file-unreadable": Kind("error", "{n} annotation files cannot be read.", _EXPORT_FILES),
    "annotation-broken": Kind("warning", "{n} rows dropped, not an object or not readable.", _EXPORT),
    "annotation-unknown-picture": Kind("warning", "{n} boxes dropped, its picture is not in the file.", _EXPORT),
    "annotation-unknown-category": Kind("warning", "{n} boxes dropped, its category is not in the file.", _EXPORT),
    "annotation-ignored-field": Kind(
        "note",
        "LVIS's lists of classes that were looked for (neg_category_ids, not_exhaustive_category_ids) are used for its "
        "numbers, where every category has a frequency; in training classes that are not annotated count as absent.",
        _NOTHING,
    ),
    "box-not-numbers": Kind("warning", "{n} boxes dropped, not four numbers that are all finite.", _EXPORT),
    "box-inverted": Kind("warning", "{n} boxes dropped, negative width or height.", _DRAW),
    "box-zero-area": Kind("warning", "{n} boxes dropped, no area.", _DRAW),
    "box-outside": Kind("warning", "{n} boxes dropped, outside the picture.", _DRAW),
    "box-clipped": Kind("warning", "{n} boxes reached beyond the picture and were clipped to it.", _DRAW),
    "box-duplicate": Kind(
        "warning", "{n} boxes dropped, they repeat a box of the same class in the same picture.", _DRAW
    ),
    "boxes-look-xyxy": Kind(
        "error",
        "the boxes look like corners x1, y1, x2, y2: read as x, y, width, height {n} of them leave the picture, read as "
        "corners none does.",
        _CORNERS,
    ),
    "boxes-look-xywh": Kind(
        "error",
        "the boxes look like x, y, width, height: read as corners x1, y1, x2, y2 {n} of them are inverted or outside, read as "
        "width and height none is.",
        _SIDES,
    ),
    "boxes-look-normalised": Kind(
        "error",
        "all {n} boxes lie between 0 and 1, so they look like shares of the picture; this format's boxes are in pixels.",
        _MULTIPLY,
    ),
    "boxes-look-pixels": Kind(
        "error",
        "{n} boxes have numbers far above 1, so they look like pixels; this format's boxes are shares of the picture.",
        _DIVIDE,
    ),
    "category-broken": Kind("error", "{n} categories have no usable 'id' and 'name'.", "Give each an id and a name."),
    "category-id-twice": Kind("error", "{n} category ids have two names.", "Every class needs its own id."),
    "category-ids-numbered": Kind(
        "note", "category ids are not integers: numbered from 1 in the order of the file.", _NOTHING
    ),
    "category-placeholder": Kind(
        "note", "ignored, without boxes and only the parent of the others: placeholder category", _NOTHING
    ),
    "names-merged": Kind(
        "warning",
        "{n} classes have several names that read the same after cleaning: they are one class.",
        "Rename them.",
    ),
    "crowd-regions": Kind(
        "note",
        "{n} boxes stand for groups (iscrowd) or are marked difficult: not trained on, not counted in evaluation.",
        _NOTHING,
    ),
    "span-outside-caption": Kind(
        "warning", "{n} character spans dropped, they do not lie in the caption or hold no letter.", _EXPORT
    ),
    "phrase-not-in-caption": Kind("warning", "{n} phrases dropped, their words do not stand in the caption.", _SPANS),
    "caption-missing": Kind("warning", "{n} pictures have no caption and were left out.", _EXPORT),
    "segments-to-boxes": Kind("note", "{n} outlines became the boxes around them.", _NOTHING),
}

FATAL = ["annotation-file-unreadable", "picture-broken", "picture-id-twice", "category-broken", "category-id-twice"]
FATAL += ["picture-outside", "picture-missing", "picture-unreadable", "picture-bomb"]
"""What ends the reading of a data set for training, all of it told at once; `check` goes on without these pictures."""
