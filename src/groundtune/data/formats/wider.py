"""WIDER FACE: a text file per split, with the rows of each image after its name and their number.

    0--Parade/0_Parade_marchingband_1_849.jpg
    1
    40 30 40 30 0 0 0 0 0 0        x y w h blur expression illumination invalid occlusion pose

The class is "face". Faces marked invalid are crowd boxes. An image without faces has the number 0,
and a row of zeros. Source: http://shuoyang1213.me/WIDERFACE/ (readme.txt of wider_face_split).
"""

import re
from collections import Counter
from pathlib import Path
from posixpath import basename, dirname, splitext

from groundtune.data.formats.files import files_by_split, image_folders, is_text
from groundtune.data.formats.records import Evidence, RawBox, RawClass, RawData, RawImage, Source
from groundtune.data.formats.tree import Tree
from groundtune.data.formats.words import split_of
from groundtune.data.images import IMAGE_SUFFIXES
from groundtune.files import read_text

_HEAD = re.compile(r"\s*\S[^\n]*\.\w{3,4}\s*\n\s*\d+\s*\n\s*-?\d+( +-?\d+){3,}\s*(\n|$)")
_MAX_FILES, _PROBED = 50, 500  # in a folder; in all
_CLASS = "face"
_INVALID = 7  # index in a row


def recognize(tree: Tree) -> Evidence | None:
    """Recognize text files that begin with an image, a number and a row of numbers."""
    files = tree.declared(".txt")
    counts = Counter(map(dirname, files))  # folders of a file per image have many
    probed = [file for file in files if counts[dirname(file)] <= _MAX_FILES][:_PROBED]
    chosen = [file for file in probed if _HEAD.match(tree.head(file, 2000))]
    if not chosen:
        return None
    sources = files_by_split(chosen, lambda file: Source(tree.root / file, _folders(tree, file), _read), tree)
    return Evidence("wider", 2, sources, example=chosen[0])


def _folders(tree: Tree, file: str) -> list[str]:
    """Return the folders of images, first those such as "WIDER_train/images" of the same split."""
    near = (each for each in sorted(tree.folders) if basename(each) == "images")
    own = [each for each in near if split_of(basename(dirname(each))) == split_of(file)]
    return own + image_folders(tree, file)


def _read(path: Path) -> RawData:
    raw = RawData(path, "xywh", classes=[RawClass(_CLASS, _CLASS, 1)], states_size=False)
    image: RawImage | None = None
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields, where = line.split(), f"line {number}"
        numbers = [int(field) for field in fields if re.fullmatch(r"-?\d{1,9}", field)]
        if splitext(line.strip())[1].lower() in IMAGE_SUFFIXES and is_text(line):
            image = RawImage((line.strip().replace("\\", "/"),), where)
            raw.images.append(image)
        elif len(numbers) >= 4 and len(numbers) == len(fields) and image is not None:
            if any(numbers):
                invalid = len(numbers) > _INVALID and numbers[_INVALID] == 1
                image.boxes.append(RawBox(numbers[:4], _CLASS, where, invalid))
        elif fields and not (len(numbers) == len(fields) == 1):
            raw.problems.add("annotation-broken", f"{where} {line[:40]!r}")
    return raw
