"""Every problem that checking can find: how grave it is, what is said about it, and what the user can do.

An error is what training would stop on. A warning spoils a part of the result, or the numbers that judge it. A note is
only good to know. The readers' own problems are in `formats.reading`.
"""

from groundtune.data.findings import Kind
from groundtune.data.formats.reading import READING

_RENAME = (
    "Give the model short names in words that it knows: --rename NAME='other name', or `classes:` in the YAML file."
)
_RENAME_IF = "Rename the class if it reads wrongly: --rename NAME='other name'."
_MERGE = "If so, make them one: --rename WRONG='right'."
_NOTHING = "Nothing has to be done."
_LOOK = "Look at these boxes in the labelling tool, and correct or delete them."
_COMPLETE = "Make sure that the annotations are complete and belong to these pictures."
_LABEL = "Label more of them, or remove the class."
_MORE_VALID = "Move pictures over, or delete the split: a fifth of train is then held out."
_ONE_SPLIT = "Keep each picture, and pictures of one scene or video, in one split."
_LARGER = "Use a larger --short-side and --max-side, or cut the pictures into tiles."
_TILES = "Cut the pictures into tiles, which are smaller and hold fewer boxes."
_REPLACE = "Copy or export the files again, or remove the pictures."
_FRAME = "Look whether their boxes fit; if not, correct the stated sizes, or save the pictures upright without EXIF."
_CONTRAST = "Look whether they come out too dark; save them in 8 bits with the contrast you want."
_UNUSED = "Annotate them, or list them without boxes if nothing is on them."

CHECKING: dict[str, Kind] = {
    # names
    "name-number": Kind("warning", "Class names that are numbers: the model learns less from these.", _RENAME),
    "name-meaningless": Kind("warning", "Class names that say nothing, and the model reads names.", _RENAME),
    "name-abbreviation": Kind("warning", "Class names with an abbreviation that is no word to the model.", _RENAME),
    "name-separator": Kind("note", "Class names with '.' or '?', which end a phrase: read as spaces.", _RENAME_IF),
    "name-parentheses": Kind("note", "Class names with text in parentheses, which is not read.", _RENAME_IF),
    "name-unknown-token": Kind("warning", "Class names in letters that the model cannot read: it sees [UNK].", _RENAME),
    "name-without-token": Kind("error", "Class names in which the model finds nothing to read.", _RENAME),
    "name-too-long": Kind("error", "Class names that are too long for a prompt.", _RENAME),
    "names-over-budget": Kind("note", "All names together are too long for one prompt: asked in chunks.", _NOTHING),
    "names-same-tokens": Kind("warning", "Class names that the model reads the same.", _RENAME),
    "names-alike": Kind("warning", "Class names that differ by little: perhaps one class spelt in two ways.", _MERGE),
    # splits and classes
    "split-missing": Kind("error", "There are no pictures to train on.", "Add a split called 'train'."),
    "split-without-boxes": Kind("error", "Splits without a single box.", _COMPLETE),
    "split-small": Kind("warning", "Splits with so few pictures that their AP is mostly chance.", _MORE_VALID),
    "file-in-two-splits": Kind("warning", "Files in two splits: AP comes out too high.", _ONE_SPLIT),
    "class-without-boxes": Kind("warning", "Classes without a box in any split: only taught as absent.", _LABEL),
    "class-one-box": Kind("warning", "Classes with a single box to learn from.", _LABEL),
    "class-only-valid": Kind("warning", "Classes that are judged but never trained on.", "Move some to train."),
    "class-only-train": Kind("note", "Classes without boxes in valid: no AP is measured.", "Move some to valid."),
    "class-imbalance": Kind("warning", "Classes with less than 1 % of the boxes of the most frequent one.", _LABEL),
    "pictures-empty": Kind("note", "Pictures without boxes: taught as showing nothing.", _COMPLETE),
    "pictures-mostly-empty": Kind("warning", "More than half of the pictures have no boxes.", _COMPLETE),
    # boxes
    "object-tiny": Kind("note", "Objects of less than 8 × 8 pixels at the model's picture size.", _LARGER),
    "objects-mostly-tiny": Kind("warning", "More than a fifth of the objects have less than 8 × 8 pixels.", _LARGER),
    "box-covers-picture": Kind("note", "Boxes that cover at least 95 % of their picture.", _LOOK),
    "box-extreme-ratio": Kind("warning", "Boxes that are more than 20 times as long as wide.", _LOOK),
    "box-near-duplicate": Kind("warning", "Boxes that nearly repeat another one of the same class.", _LOOK),
    "box-two-classes": Kind("warning", "Boxes that are two classes at once.", "Keep the right one of the two."),
    "boxes-many": Kind("warning", "Pictures with more boxes than the model can find.", _TILES),
    "class-inside-class": Kind("note", "Classes nearly always inside the boxes of another class.", _NOTHING),
    # grounding
    "span-in-word": Kind("warning", "Phrases that begin or end inside a word of the caption.", "Correct their spans."),
    "phrase-without-boxes": Kind("note", "Phrases of captions without boxes: taught as absent.", _NOTHING),
    # pictures
    "picture-corrupt": Kind("error", "Pictures that cannot be decoded.", _REPLACE),
    "picture-truncated": Kind("error", "Pictures that are cut off before their end.", _REPLACE),
    "picture-bomb": Kind("error", "Pictures with so many pixels that they are not decoded.", _TILES),
    "picture-size-wrong": Kind("warning", "Pictures of another shape than stated: their boxes are likely off.", _FRAME),
    "picture-rescaled": Kind("note", "Pictures of another size than stated, in the same shape: scaled.", _NOTHING),
    "exif-turned": Kind("note", "Pictures turned as EXIF says, because the stated size fits so.", _NOTHING),
    "exif-ignored": Kind("note", "Pictures whose EXIF orientation is ignored: the stated size fits.", _NOTHING),
    "exif-undecided": Kind("warning", "Pictures with an EXIF orientation that may or may not hold: ignored.", _FRAME),
    "picture-deep": Kind("warning", "Pictures with more than 8 bits per value: 65535 becomes white.", _CONTRAST),
    "picture-animated": Kind("warning", "Pictures with several frames: only the first is used.", _REPLACE),
    "picture-blank": Kind("warning", "Pictures of a single colour.", _REPLACE),
    "file-unused": Kind("warning", "Pictures beside the annotated ones that no annotation mentions.", _UNUSED),
    # twins
    "duplicate-file": Kind("warning", "Pictures that are the same file as another one.", "Keep one of each."),
    "near-duplicate": Kind("note", "Pictures that look nearly like another one: they teach little.", _NOTHING),
    "leak-exact": Kind("warning", "Pictures that another split has too: AP comes out too high.", _ONE_SPLIT),
    "leak-near": Kind("warning", "Pictures that look like one of another split: AP comes out too high.", _ONE_SPLIT),
    # the whole
    "data-unreadable": Kind("error", "The data set cannot be read.", "Correct what it says, and check again."),
}

CHECKS: dict[str, Kind] = READING | CHECKING
