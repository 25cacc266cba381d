"""Every problem that checking can find: how grave it is, what is said about it, and what the user can do.

An error is what training would stop on. A warning spoils a part of the result, or the numbers that judge it. A note is
only good to know. The readers' own problems are in `formats.reading`.
"""

from groundtune.data.problems import READING, CheckSpec

_RENAME = "Give the model short names in words that it knows: --rename NAME='other name', or `classes:` in the YAML file."
_RENAME_IF = "Rename the class if it reads wrongly: --rename NAME='other name'."
_MERGE = "If so, make them one: --rename WRONG='right'."
_NOTHING = "Nothing has to be done."
_LOOK = "Look at these boxes in the labeling tool, and correct or delete them."
_COMPLETE = "Make sure that the annotations are complete and belong to these images."
_LABEL = "Label more of them, or remove the class."
_MORE_VALID = "Move images over, or delete the split: a fifth of train is then held out."
_ONE_SPLIT = "Keep each image, and images of one scene or video, in one split."
_LARGER = "Use a larger --short-side and --max-side, or cut the images into tiles."
_TILES = "Cut the images into tiles, which are smaller and hold fewer boxes."
_REPLACE = "Copy or export the files again, or remove the images."
_FRAME = (
    "Look whether their boxes fit; if not, correct the stated sizes, or save the images upright without EXIF."
)
_CONTRAST = "Look whether they come out too dark; save them in 8 bits with the contrast you want."
_UNUSED = "Annotate them, or list them without boxes if nothing is on them."

CHECKING: dict[str, CheckSpec] = {
    # names
    "name-number": CheckSpec(
        "warning", "Class names that are numbers: the model learns less from these.", _RENAME
    ),
    "name-meaningless": CheckSpec(
        "warning", "Class names that say nothing, and the model reads names.", _RENAME
    ),
    "name-abbreviation": CheckSpec(
        "warning", "Class names with an abbreviation that is no word to the model.", _RENAME
    ),
    "name-separator": CheckSpec(
        "note", "Class names with '.' or '?', which end a phrase: read as spaces.", _RENAME_IF
    ),
    "name-parentheses": CheckSpec(
        "note", "Class names with text in parentheses, which is not read.", _RENAME_IF
    ),
    "name-unknown-token": CheckSpec(
        "warning", "Class names in letters that the model cannot read: it sees [UNK].", _RENAME
    ),
    "name-without-token": CheckSpec(
        "error", "Class names in which the model finds nothing to read.", _RENAME
    ),
    "name-too-long": CheckSpec("error", "Class names that are too long for a prompt.", _RENAME),
    "names-over-budget": CheckSpec(
        "note", "All names together are too long for one prompt: asked in chunks.", _NOTHING
    ),
    "names-same-tokens": CheckSpec("warning", "Class names that the model reads the same.", _RENAME),
    "names-alike": CheckSpec(
        "warning", "Class names that differ by little: perhaps one class spelt in two ways.", _MERGE
    ),
    # splits and classes
    "split-missing": CheckSpec("error", "There are no images to train on.", "Add a split called 'train'."),
    "split-without-boxes": CheckSpec("error", "Splits without a single box.", _COMPLETE),
    "split-small": CheckSpec(
        "warning", "Splits with so few images that their AP is mostly chance.", _MORE_VALID
    ),
    "file-in-two-splits": CheckSpec("warning", "Files in two splits: AP comes out too high.", _ONE_SPLIT),
    "class-without-boxes": CheckSpec(
        "warning", "Classes without a box in any split: only taught as absent.", _LABEL
    ),
    "class-one-box": CheckSpec("warning", "Classes with a single box to learn from.", _LABEL),
    "class-only-valid": CheckSpec(
        "warning", "Classes that are judged but never trained on.", "Move some to train."
    ),
    "class-only-train": CheckSpec(
        "note", "Classes without boxes in valid: no AP is measured.", "Move some to valid."
    ),
    "class-imbalance": CheckSpec(
        "warning", "Classes with less than 1 % of the boxes of the most frequent one.", _LABEL
    ),
    "images-empty": CheckSpec("note", "Images without boxes: taught as showing nothing.", _COMPLETE),
    "images-mostly-empty": CheckSpec("warning", "More than half of the images have no boxes.", _COMPLETE),
    # boxes
    "object-tiny": CheckSpec("note", "Objects of less than 8 × 8 pixels at the model's image size.", _LARGER),
    "objects-mostly-tiny": CheckSpec(
        "warning", "More than a fifth of the objects have less than 8 × 8 pixels.", _LARGER
    ),
    "box-covers-image": CheckSpec("note", "Boxes that cover at least 95 % of their image.", _LOOK),
    "box-extreme-ratio": CheckSpec("warning", "Boxes that are more than 20 times as long as wide.", _LOOK),
    "box-near-duplicate": CheckSpec(
        "warning", "Boxes that nearly repeat another one of the same class.", _LOOK
    ),
    "box-two-classes": CheckSpec(
        "warning", "Boxes that are two classes at once.", "Keep the right one of the two."
    ),
    "boxes-many": CheckSpec("warning", "Images with more boxes than the model can find.", _TILES),
    "class-inside-class": CheckSpec(
        "note", "Classes nearly always inside the boxes of another class.", _NOTHING
    ),
    # grounding
    "span-in-word": CheckSpec(
        "warning", "Phrases that begin or end inside a word of the caption.", "Correct their spans."
    ),
    "phrase-without-boxes": CheckSpec(
        "note", "Phrases of captions without boxes: taught as absent.", _NOTHING
    ),
    # images
    "image-corrupt": CheckSpec("error", "Images that cannot be decoded.", _REPLACE),
    "image-truncated": CheckSpec("error", "Images that are cut off before their end.", _REPLACE),
    "image-bomb": CheckSpec("error", "Images with so many pixels that they are not decoded.", _TILES),
    "image-size-wrong": CheckSpec(
        "warning", "Images of another shape than stated: their boxes are likely off.", _FRAME
    ),
    "image-rescaled": CheckSpec(
        "note", "Images of another size than stated, in the same shape: scaled.", _NOTHING
    ),
    "exif-turned": CheckSpec(
        "note", "Images turned as EXIF says, because the stated size fits so.", _NOTHING
    ),
    "exif-ignored": CheckSpec(
        "note", "Images whose EXIF orientation is ignored: the stated size fits.", _NOTHING
    ),
    "exif-undecided": CheckSpec(
        "warning", "Images with an EXIF orientation that may or may not hold: ignored.", _FRAME
    ),
    "image-deep": CheckSpec(
        "warning", "Images with more than 8 bits per value: 65535 becomes white.", _CONTRAST
    ),
    "image-animated": CheckSpec("warning", "Images with several frames: only the first is used.", _REPLACE),
    "image-blank": CheckSpec("warning", "Images of a single color.", _REPLACE),
    "file-unused": CheckSpec(
        "warning", "Images beside the annotated ones that no annotation mentions.", _UNUSED
    ),
    # twins
    "duplicate-file": CheckSpec(
        "warning", "Images that are the same file as another one.", "Keep one of each."
    ),
    "near-duplicate": CheckSpec(
        "note", "Images that look nearly like another one: they teach little.", _NOTHING
    ),
    "leak-exact": CheckSpec(
        "warning", "Images that another split has too: AP comes out too high.", _ONE_SPLIT
    ),
    "leak-near": CheckSpec(
        "warning", "Images that look like one of another split: AP comes out too high.", _ONE_SPLIT
    ),
    # the whole
    "data-unreadable": CheckSpec(
        "error", "The data set cannot be read.", "Correct what it says, and check again."
    ),
}

CHECKS: dict[str, CheckSpec] = READING | CHECKING
