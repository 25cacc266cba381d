"""Formats that are recognized but not read: what each is, and how it becomes one that is read."""

import re
from typing import NamedTuple

from groundtune.data.formats.records import Evidence
from groundtune.data.formats.tree import Tree

_PROBED = 50  # files


class _Format(NamedTuple):
    """Pattern of its file names, keys of its JSON or pattern of its first lines, and the advice."""

    names: str
    content: list[set[str]] | str
    advice: str


_JSON, _DATUM = r"json\d?$", "convert it with `datum convert -i FOLDER -f coco -o OUT -if"
_FORMATS = [
    _Format(
        _JSON,
        [{"size", "objects"}, {"classes", "tags", "projectType"}],
        "a file of Supervisely: export the project with the app 'Export to COCO'",
    ),
    _Format(
        _JSON,
        [{"data_row", "projects"}, {"Labeled Data"}, {"DataRow ID"}],
        "an export of Labelbox: convert it with `labelformat convert --task object-detection --input-format "
        "labelbox --input-file FILE --category-names A,B --output-format coco --output-file train.json`",
    ),
    _Format(
        r"json$|\.vott$",
        [{"assets", "tags"}, {"asset", "regions"}, {"sourceConnection"}],
        "a project of VoTT: choose CSV or Pascal VOC in its export settings, and export it",
    ),
    _Format(_JSON, [{"project", "attribute", "view"}], "a project of VIA 3: export its annotations as COCO"),
    _Format(r"\.tfrecords?\b|\.tfrec$", "", f"a TFRecord: {_DATUM} tf_detection_api -- --save-media`"),
    _Format(
        r"(^|/)gt\.txt$",
        r"^\s*\d+, *-?\d+(, *-?[\d.]+){4}",
        f"a file of MOT tracks: {_DATUM} mot_seq -- --save-media`",
    ),
    _Format(r"\.xml$", r"<dataset\b.*<images\b", "XML of imglab: open it at imglab.in, and save it as COCO"),
    _Format(r"\.hei[cf]$", "", "a HEIC image: convert all, such as with `magick mogrify -format jpg *.heic`"),
    _Format(
        r"(^|/)(labels?|annotations?|[^/]*(mask|segmentation)[^/]*)/[^/]+\.png$|[_-]mask\.png$",
        "",
        "a mask of pixels: export the objects as COCO, or convert the masks with `labelformat convert --task "
        "instance-segmentation --input-format maskpair --output-format coco`",
    ),
]


def recognize(tree: Tree) -> Evidence | None:
    """Recognize a format that is not read; the evidence has the reason and what to do."""
    for names, content, advice in _FORMATS:
        for file in [file for file in tree.files if re.search(names, file, re.IGNORECASE)][:_PROBED]:
            if isinstance(content, list) and file in tree.signatures:
                keys = tree.signatures[file].keys | (tree.signatures[file].first or {}).keys()
                known = any(keys >= group for group in content)
            else:
                known = isinstance(content, str) and bool(
                    re.search(content, tree.head(file, 4096), re.DOTALL)
                )
            if known:
                reason = f"{tree.root / file} is not read. It is {advice}."
                return Evidence("unread", 0, {}, {"": reason}, file)
    return None
