"""Every problem that checking can find: how grave it is, what is said about it, and what the user can do.

An error is what training would stop on. A warning spoils a part of the result, or the numbers that judge it. A note is
only good to know. The readers' own problems are in `formats.reading`.
"""

from groundtune.data.findings import Kind
from groundtune.data.formats.reading import READING

_RENAME = "Give the model words that it knows: --rename NAME='other name', or `classes:` in the YAML file."
_NOTHING = "Nothing has to be done."
_LOOK = "Look at these boxes in the labelling tool, and correct or delete them."

CHECKING: dict[str, Kind] = {
    # names
    "name-number": Kind(
        "warning", "Class names that are numbers: the model reads names and learns less from these.", _RENAME
    ),
    "name-meaningless": Kind("warning", "Class names that say nothing, and the model reads names.", _RENAME),
    "name-abbreviation": Kind("warning", "Class names with an abbreviation that is no word to the model.", _RENAME),
    "name-misspelt": Kind(
        "note",
        "Class names with a word that the model does not know, and that is one letter away from one it does.",
        "If it is misspelt: --rename NAME='other name'.",
    ),
    "name-separator": Kind(
        "note",
        "Class names with '.' or '?', which end a phrase: read as spaces.",
        "Rename the class if it reads wrongly.",
    ),
    "name-parentheses": Kind(
        "note", "Class names with text in parentheses, which is not read.", "Rename the class if that text is needed."
    ),
    "name-list": Kind(
        "note",
        "Class names that list several things: the model reads them as one phrase.",
        "Choose the word that fits best: --rename NAME='other name'.",
    ),
    "name-unknown-token": Kind(
        "warning",
        "Class names in letters that the model cannot read: it sees [UNK].",
        "Translate them: --rename NAME='english'.",
    ),
    "name-without-token": Kind("error", "Class names in which the model finds nothing to read.", _RENAME),
    "name-too-long": Kind(
        "error", "Class names that are too long for a prompt.", "Shorten them: --rename NAME='short'."
    ),
    "names-over-budget": Kind(
        "note",
        "All class names together are too long for one prompt: each picture is asked several times in evaluation and "
        "prediction, and training samples the names.",
        _NOTHING,
    ),
    "names-same-tokens": Kind(
        "warning", "Class names that are spelt differently and read the same by the model.", _RENAME
    ),
    "names-alike": Kind(
        "warning",
        "Class names that differ by little: perhaps one class spelt in two ways.",
        "If so, make them one: --rename WRONG='right'.",
    ),
    # splits and classes
    "split-missing": Kind("error", "There are no pictures to train on.", "Add a split called 'train'."),
    "split-without-boxes": Kind("error", "Splits without a single box.", "Check that the annotations belong to it."),
    "split-small": Kind(
        "warning",
        "Splits with so few pictures that their AP is mostly chance.",
        "Move pictures over, or delete the split: a fifth of train is then held out.",
    ),
    "file-in-two-splits": Kind(
        "warning", "Picture files that are in two splits: AP is measured on what was learnt.", "Keep each in one split."
    ),
    "class-without-boxes": Kind(
        "warning",
        "Classes without a box in any split: only ever taught as absent.",
        "Label them, or remove the classes.",
    ),
    "class-one-box": Kind(
        "warning", "Classes with a single box to learn from.", "Label more of them, or remove the class."
    ),
    "class-only-valid": Kind(
        "warning", "Classes that are judged but never trained on.", "Move some of their pictures to train."
    ),
    "class-only-train": Kind(
        "note",
        "Classes that are trained on but not in valid: their AP is not measured.",
        "Move a picture of each to valid.",
    ),
    "class-imbalance": Kind(
        "warning",
        "Classes with less than a hundredth of the boxes of the most frequent one.",
        "Label more of them, or expect little from them.",
    ),
    "pictures-empty": Kind(
        "note", "Pictures without boxes: taught as showing nothing.", "Make sure that nothing is on them."
    ),
    "pictures-mostly-empty": Kind(
        "warning", "More than half of the pictures have no boxes.", "Make sure that the annotations are complete."
    ),
    # boxes
    "object-tiny": Kind(
        "note",
        "Objects of less than 8 × 8 pixels at the model's picture size.",
        "Try a larger --short-side and --max-side.",
    ),
    "objects-mostly-tiny": Kind(
        "warning",
        "More than a fifth of the objects have less than 8 × 8 pixels at the model's picture size.",
        "Use a larger --short-side and --max-side, or cut the pictures into tiles.",
    ),
    "box-covers-picture": Kind("note", "Boxes that cover at least 95 % of their picture.", _LOOK),
    "box-extreme-ratio": Kind("warning", "Boxes that are more than 20 times as long as wide.", _LOOK),
    "box-near-duplicate": Kind("warning", "Boxes that nearly repeat another one of the same class.", _LOOK),
    "box-two-classes": Kind("warning", "Boxes that are two classes at once.", "Keep the right one of the two."),
    "boxes-many": Kind(
        "warning",
        "Pictures with more boxes than the model can find.",
        "Cut the pictures into tiles, or use a model with more queries.",
    ),
    "boxes-copied": Kind(
        "warning",
        "Pictures whose boxes are exactly those of another picture.",
        "Look whether they were copied by mistake.",
    ),
    "class-inside-class": Kind(
        "note",
        "Classes whose boxes nearly always lie inside those of another class.",
        "Nothing has to be done if it is so.",
    ),
    # grounding
    "span-in-word": Kind("warning", "Phrases that begin or end inside a word of the caption.", "Correct their spans."),
    "phrase-without-boxes": Kind("note", "Phrases of captions without boxes: taught as absent.", _NOTHING),
    # pictures
    "picture-corrupt": Kind("error", "Pictures that cannot be decoded.", "Replace the files, or remove the pictures."),
    "picture-truncated": Kind("error", "Pictures that are cut off before their end.", "Copy or download them again."),
    "picture-bomb": Kind(
        "error", "Pictures with so many pixels that they are not decoded.", "Make them smaller, or cut them into tiles."
    ),
    "picture-size-wrong": Kind(
        "warning",
        "Pictures whose stated width and height have another shape than the file: their boxes are likely off.",
        "Correct the stated sizes and look at the boxes, or label these pictures again.",
    ),
    "picture-rescaled": Kind(
        "note",
        "Pictures whose file has another size than stated, in the same shape: scaled to fit the boxes.",
        _NOTHING,
    ),
    "exif-turned": Kind(
        "note", "Pictures that are turned as their EXIF orientation says, because the stated size fits so.", _NOTHING
    ),
    "exif-ignored": Kind(
        "note", "Pictures whose EXIF orientation is ignored, because the stated size fits the stored pixels.", _NOTHING
    ),
    "exif-undecided": Kind(
        "warning",
        "Pictures with an EXIF orientation where the stated size fits both ways: the stored pixels are taken.",
        "Look whether their boxes fit; if not, save the pictures upright without the EXIF entry.",
    ),
    "picture-cmyk": Kind(
        "note", "Pictures in CMYK: converted to RGB, colours may shift.", "Save them as RGB to be sure."
    ),
    "picture-deep": Kind(
        "warning",
        "Pictures with more than 8 bits per value: scaled so that 65535 is white.",
        "Look whether they come out too dark; save them in 8 bits with the contrast you want.",
    ),
    "picture-transparent": Kind("note", "Pictures with transparency: laid on white.", _NOTHING),
    "picture-animated": Kind(
        "warning", "Animated pictures or several pages: only the first is used.", "Save single pictures."
    ),
    "picture-blank": Kind("warning", "Pictures of a single colour.", "Look whether they were exported correctly."),
    "picture-small": Kind("note", "Pictures with a side of less than 32 pixels.", "Look whether they are thumbnails."),
    "file-extension": Kind("note", "Picture files whose ending does not fit their content.", _NOTHING),
    "file-unused": Kind(
        "warning",
        "Pictures beside the annotated ones that no annotation mentions: not used.",
        "Annotate them, or list them without boxes if nothing is on them.",
    ),
    # twins
    "duplicate-file": Kind(
        "warning", "Pictures that are the same file as another one of the split.", "Keep one of each."
    ),
    "near-duplicate": Kind(
        "note", "Pictures that look nearly like another one of the split.", "Nothing has to be done; they teach little."
    ),
    "leak-exact": Kind(
        "warning",
        "Pictures that are the same file as one of another split: AP is measured on what was learnt.",
        "Remove them from one of the two.",
    ),
    "leak-near": Kind(
        "warning",
        "Pictures that look nearly like one of another split: AP comes out too high.",
        "Keep pictures of one scene or video in one split.",
    ),
    # the whole
    "data-unreadable": Kind("error", "The data set cannot be read.", "Correct what it says, and check again."),
}

CHECKS: dict[str, Kind] = READING | CHECKING
