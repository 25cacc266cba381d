"""The problems that checking can find: severity, message and fix of each.

An error would stop training. A warning impairs a part of the result or of its evaluation. A note is
only good to know. Problems that reading finds are in `data.problems`.
"""

from dataclasses import dataclass

from transformers import BertTokenizer

from groundtune.data.problems import READING, CheckSpec, Severity


@dataclass(frozen=True)
class ModelLimits:
    """What a model can process."""

    tokenizer: BertTokenizer
    max_text_len: int  # maximum number of tokens of a prompt, with [CLS] and [SEP]
    num_queries: int  # maximum number of detections per image
    short_side: int  # of its images, pixels
    max_side: int


_RENAME = "Give the model a short name in common words: --rename NAME='other name', or `rename:` in YAML."
_RENAME_IF = "If it reads wrongly, rename the class: --rename NAME='other name'."
_MERGE = "If so, merge them: --rename WRONG='right'."
_NOTHING = "Nothing has to be done."
_NO_FLIP = "Nothing has to be done; --flip 0 mirrors no image."
_BOXES = "Look at these boxes in the labeling tool, and correct or delete them."
_COMPLETE = "Make sure that the annotations are complete and belong to these images."
_LABEL = "Label more objects of it, or remove the class."
_MOVE = "Move some of their images to the other split."
_MORE_VALID = "Move images to it, or delete the split: a fifth of train is then held out."
_ONE_SPLIT = "Keep each image, and the images of one scene or video, in one split."
_LARGER = "Use a larger --short-side and --max-side, or cut the images into tiles."
_TILES = "Cut the images into tiles, which are smaller and have fewer boxes."
_REPLACE = "Copy or export the files again, or remove the images."
_FRAME = "Look at their boxes. If they are off, correct the stated sizes, or save the images without EXIF."
_CONTRAST = "If they are too dark, save them with 8 bits and the contrast that you want."
_UNUSED = "Annotate them, or list them without boxes if they show no objects."

_CHECKS: list[tuple[str, Severity, str, str]] = [
    # names
    ("name-number", "warning", "Class names are numbers; the model learns better from words.", _RENAME),
    ("name-meaningless", "warning", "Class names have no meaning.", _RENAME),
    ("name-abbreviation", "warning", "Class names have an abbreviation unknown to the model.", _RENAME),
    ("name-separator", "note", "Class names contain '.' or '?', which are read as spaces.", _RENAME_IF),
    ("name-parentheses", "note", "Class names contain parentheses, whose text is not read.", _RENAME_IF),
    ("name-unknown-token", "warning", "Class names have characters that are read as [UNK].", _RENAME),
    ("name-without-token", "error", "Class names have no character that the model can read.", _RENAME),
    ("name-too-long", "error", "Class names do not fit into a prompt.", _RENAME),
    ("names-over-budget", "note", "The class names do not fit into one prompt; several are used.", _NOTHING),
    ("names-same-tokens", "error", "Class names are identical to the model.", _RENAME),
    ("names-alike", "warning", "Class names are nearly equal, perhaps one class in two spellings.", _MERGE),
    ("names-mirrored", "note", "Names or captions change when training mirrors an image.", _NO_FLIP),
    # splits and classes
    ("split-missing", "error", "There are no images to train on.", "Add a split called 'train'."),
    ("split-without-boxes", "error", "The split has no boxes.", _COMPLETE),
    ("split-small", "warning", "The split is so small that its AP is mostly chance.", _MORE_VALID),
    ("file-in-two-splits", "warning", "Image files are in two splits, so AP is too high.", _ONE_SPLIT),
    ("class-without-boxes", "warning", "Classes have no boxes at all; they are trained as absent.", _LABEL),
    ("class-one-box", "warning", "Classes have a single box to train on.", _LABEL),
    ("class-only-valid", "warning", "Classes are evaluated, but not trained.", _MOVE),
    ("class-only-train", "note", "Classes have no boxes in valid, so they have no AP.", _MOVE),
    ("class-imbalance", "warning", "Classes have below 1 % of the boxes of the most frequent one.", _LABEL),
    ("images-empty", "note", "Images have no boxes; they are trained as background.", _COMPLETE),
    ("images-mostly-empty", "warning", "More than half of the images have no boxes.", _COMPLETE),
    # boxes
    ("object-tiny", "note", "Objects are below 8 × 8 pixels at the model's image size.", _LARGER),
    ("objects-mostly-tiny", "warning", "Over a fifth of the objects are below 8 × 8 pixels.", _LARGER),
    ("box-covers-image", "note", "Boxes cover at least 95 % of their image.", _BOXES),
    ("box-extreme-ratio", "warning", "Boxes are more than 20 times as long as wide.", _BOXES),
    ("box-near-duplicate", "warning", "Boxes nearly repeat another box of their class.", _BOXES),
    ("box-two-classes", "warning", "Boxes of two classes nearly coincide.", "Delete the wrong one."),
    ("boxes-many", "warning", "Images have more boxes than the model can detect.", _TILES),
    ("class-inside-class", "note", "Boxes of a class are nearly always inside another class.", _NOTHING),
    # captions
    ("span-in-word", "warning", "Phrases begin or end inside a word.", "Correct their spans."),
    ("phrase-without-boxes", "note", "Phrases have no boxes; they are trained as absent.", _NOTHING),
    # image files
    ("image-corrupt", "error", "Images cannot be decoded.", _REPLACE),
    ("image-truncated", "error", "Image files are truncated.", _REPLACE),
    ("image-bomb", "error", "Images have too many pixels to be decoded.", _TILES),
    ("image-size-wrong", "warning", "Images have another shape than stated; boxes are likely off.", _FRAME),
    ("image-rescaled", "note", "Images have another size than stated; they are resized.", _NOTHING),
    ("exif-turned", "note", "Images are rotated as EXIF says, which fits the stated size.", _NOTHING),
    ("exif-ignored", "note", "The EXIF rotation is ignored, which fits the stated size.", _NOTHING),
    ("exif-undecided", "warning", "The EXIF rotation is ignored; the stated size fits both ways.", _FRAME),
    ("image-deep", "warning", "Images have more than 8 bits per value; 65535 becomes white.", _CONTRAST),
    ("image-animated", "warning", "Images have several frames; only the first one is used.", _REPLACE),
    ("image-blank", "warning", "Images have a single color.", _REPLACE),
    ("file-unused", "warning", "Image files beside the annotated ones have no annotations.", _UNUSED),
    ("data-unpacked", "note", "The images are unpacked in a folder.", "Delete it to free its space."),
    # duplicates
    ("duplicate-file", "warning", "Image files are identical to another one.", "Keep one of each."),
    ("near-duplicate", "note", "Images look nearly like another one; they add little.", _NOTHING),
    ("leak-exact", "warning", "Images are in another split too, so AP is too high.", _ONE_SPLIT),
    ("leak-near", "warning", "Images look like one of another split, so AP is too high.", _ONE_SPLIT),
    # the whole
    ("data-unreadable", "error", "The data set cannot be read.", "Correct this, and check again."),
]

CHECKING = {check: CheckSpec(severity, message, fix) for check, severity, message, fix in _CHECKS}
CHECKS = READING | CHECKING
