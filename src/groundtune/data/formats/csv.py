"""CSV: a row per box, or per image without boxes; separated by commas, semicolons or tabs.

    path,class,x1,y1,x2,y2                                  or x,y,w,h, and other usual names
    filename,width,height,class,xmin,ymin,xmax,ymax         Roboflow, TensorFlow; size of the image
    image_id,width,height,bbox,source                       Kaggle; "[x, y, w, h]" in one cell
    ImageID,LabelName,XMin,XMax,YMin,YMax                   Open Images; normalized
    (no header) path,x1,y1,x2,y2,class                      RetinaNet; SKU-110K adds width,height

    ImageID,Source,LabelName,Confidence                     Open Images, beside the boxes: classes
                                                            verified as present (1) or absent (0)

`width` and `height` are those of the box if no other columns are. Of several columns that may be
the class, the one with words is. Classes are sorted by name, or in the order of `classes.txt`.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from posixpath import basename, dirname, splitext
from typing import Any

from groundtune.data.formats.files import (
    files_by_split,
    find_name_list,
    image_folders,
    is_number,
    is_text,
    to_number,
)
from groundtune.data.formats.records import (
    Evidence,
    RawBox,
    RawData,
    RawImage,
    Source,
    centered,
    classes_by_name,
)
from groundtune.data.formats.tree import Tree
from groundtune.data.formats.words import split_of
from groundtune.data.sample import Dataset
from groundtune.errors import DataError
from groundtune.files import read_text

_COLUMNS = {
    "path": "path filename file file_name filepath file_path image image_path img img_path image_name "
    "image_id imageid",
    "class": "class_name label_name labelname category_name class label category name source",
    "x1": "x1 xmin x_min left bbox_x1",
    "y1": "y1 ymin y_min top bbox_y1",
    "x2": "x2 xmax x_max right bbox_x2",
    "y2": "y2 ymax y_max bottom bbox_y2",
    "x": "x bbox_x",
    "y": "y bbox_y",
    "w": "w bbox_w bbox_width box_width",
    "h": "h bbox_h bbox_height box_height",
    "width": "image_width img_width width",
    "height": "image_height img_height height",
    "box": "bbox box bounding_box",
    "group": "isgroupof iscrowd",
}
_CORNERS, _SIZES = ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h")
_VERIFIED = ["imageid", "source", "labelname", "confidence"]
_EXPECTED = (
    "Expected a header such as path,class,x1,y1,x2,y2 or filename,width,height,class,xmin,ymin,xmax,ymax, or "
    "rows of path,x1,y1,x2,y2,class."
)
_JSON = re.compile(r"[\[{]\s*[\"{\]}]")  # unlike "[1].jpg"
_PROBED = 100  # rows that decide which column is the class

Columns = dict[str, int]


def recognize(tree: Tree) -> Evidence | None:
    """Recognize CSV files by columns of paths, classes and boxes."""
    chosen, others = [], {}
    for file in tree.declared(".csv", ".tsv"):
        if _is_verified_labels(tree, file):
            continue
        try:
            _columns(csv_rows(tree.head(file, 2**14), tree.root / file, partial_end=True), tree.root / file)
        except DataError as error:
            others[split_of(file) or ""] = str(error)
        else:
            chosen.append(file)
    if not chosen:
        return Evidence("csv", 0, {}, {"": next(iter(others.values()))}) if others else None
    names = _class_names(tree)
    sources = files_by_split(chosen, lambda file: _source(tree, file, names), tree)
    refused = {split: reason for split, reason in others.items() if split and split not in sources}
    return Evidence("csv", 2, sources, refused, chosen[0])


def _source(tree: Tree, file: str, names: dict[str, str]) -> Source:
    listed = find_name_list(tree, [dirname(file), ""])
    labels = [each for each in tree.suffixed(".csv") if _is_verified_labels(tree, each)]
    verified = [tree.root / each for each in labels if split_of(each) == split_of(file)]
    stems = {splitext(basename(image))[0] for image in tree.images} if verified else set[str]()
    read = partial(_read, listed=listed, names=names, verified=verified, stems=stems)
    return Source(tree.root / file, image_folders(tree, file), read)


def _is_verified_labels(tree: Tree, file: str) -> bool:
    """Return whether a file has labels of whole images, in the form of Open Images."""
    header = tree.head(file, 2**14).lstrip("\ufeff").split("\n", 1)[0]
    return [cell.strip().lower() for cell in header.split(",")] == _VERIFIED


def _class_names(tree: Tree) -> dict[str, str]:
    """Return the names of Open Images' classes, by their codes such as "/m/01yrx"."""
    files = [file for file in tree.suffixed(".csv") if "class-descriptions" in basename(file)]
    rows = csv_rows(read_text(tree.root / files[0]), tree.root / files[0]) if files else []
    return {row[0]: row[1] for row in rows if len(row) == 2}


def _read(
    path: Path, *, listed: list[str], names: dict[str, str], verified: list[Path], stems: set[str]
) -> RawData:
    rows = csv_rows(read_text(path), path)
    columns, has_header = _columns(rows, path)
    form = "xyxy" if "x1" in columns and "x2" in columns else "xywh"
    raw = RawData(path, form, states_size={"width", "height"} <= set(columns))  # type: ignore[arg-type]
    images: dict[str, RawImage] = {}
    for number, row in enumerate(rows[has_header:], start=1 + has_header):
        _add_row(images, row, columns, f"row {number}", raw)
    if verified:
        _add_verified(images, verified, stems)
    raw.images += images.values()
    boxes = [box for image in raw.images for box in image.boxes]
    if rows[0][0].strip().lower() == "imageid":  # Open Images: corners, normalized
        raw.form = "cxcywh"
        for image in raw.images:
            image.boxes = [_normalized(box) for box in image.boxes]
    if names:
        for image in raw.images:
            image.boxes = [box._replace(label=names.get(str(box.label), box.label)) for box in image.boxes]
            image.absent = image.absent and [names.get(code, code) for code in image.absent]
    raw.classes += classes_by_name(raw.images, listed if not boxes or any(box.label for box in boxes) else [])
    return raw


def _add_verified(images: dict[str, RawImage], files: Sequence[Path], stems: set[str]) -> None:
    """Add the classes that are known to be absent, also to images without a box if there is a file.

    Labels of machines are not used. A class that is present without a box is unknown.
    """
    for image in images.values():
        image.absent = []
    for file in files:
        try:
            with file.open(encoding="utf-8", errors="replace", newline="") as opened:  # can be gigabytes
                for name, source, label, confidence in (row for row in csv.reader(opened) if len(row) == 4):
                    if name not in images and name in stems:
                        images[name] = RawImage((name,), f"image {name}", absent=[])
                    absent = images[name].absent if name in images else None
                    if absent is not None and source != "machine" and to_number(confidence) == 0:
                        absent.append(label.strip())
        except csv.Error as error:
            raise DataError(f"{file}: it is not CSV: {error}. Download it again.") from error


def _normalized(box: RawBox) -> RawBox:
    if not all(isinstance(number, float) for number in box.numbers):
        return box
    return box._replace(numbers=centered(box.numbers))


def csv_rows(text: str, path: Path, partial_end: bool = False) -> list[list[str]]:
    """Return the cells of the rows that are not empty."""
    if partial_end and "\n" in text:
        text = text[: text.rindex("\n")]  # the last line may be cut
    first_line = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t", key=re.sub(r'"[^"]*"', "", first_line).count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise DataError(f"{path}: it is not CSV: {error}. {_EXPECTED}") from error
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if not rows:
        raise DataError(f"{path}: it is empty. {_EXPECTED}")
    return rows


def json_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV file by its header; cells that are JSON are parsed."""
    header, *rows = csv_rows(read_text(path).removeprefix("#"), path)
    try:
        cells = [[json.loads(cell) if _JSON.match(cell) else cell for cell in row] for row in rows]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} has cells that are not valid JSON: {error}. Export it again.") from error
    return [dict(zip(header, row, strict=False)) for row in cells]


def _columns(rows: Sequence[Sequence[str]], path: Path) -> tuple[Columns, bool]:
    """Return the index of each column, and whether the first row is a header."""
    cells = [cell.strip().lower().replace(" ", "_") for cell in rows[0]]
    candidates = {
        column: [cells.index(name) for name in names.split() if name in cells]
        for column, names in _COLUMNS.items()
    }
    columns = {column: found[0] for column, found in candidates.items() if found}
    if len(candidates["class"]) > 1:  # the one with words
        probed = rows[1:_PROBED]
        words = [
            index
            for index in candidates["class"]
            if any(not is_number(row[index]) for row in probed if index < len(row))
        ]
        columns["class"] = (words or candidates["class"])[0]
    begin = {"x", "y"} if {"x", "y"} <= set(columns) else {"x1", "y1"}
    if begin <= set(columns) and not {"x2", "w"} & set(columns) and {"width", "height"} <= set(cells):
        columns |= {"w": cells.index("width"), "h": cells.index("height")}
        for side in ("width", "height"):
            image_sides = [index for index in candidates[side] if cells[index] != side]
            columns.pop(side)
            columns |= {side: image_sides[0]} if image_sides else {}
    if "x1" in columns and "x2" not in columns and "w" in columns:
        columns |= {"x": columns.pop("x1"), "y": columns.pop("y1")}
    boxes = any(set(names) <= set(columns) for names in (_CORNERS, _SIZES, ("box",)))
    if {"path", "class"} <= set(columns) and boxes:
        return columns, True
    if (without_header := _without_header(cells)) is not None:
        return without_header, False
    found = ", ".join(repr(cell[:30]) for cell in rows[0][:10])
    raise DataError(f"{path}: the columns {found} are not those of boxes. {_EXPECTED}")


def _without_header(cells: Sequence[str]) -> Columns | None:
    """Return the columns of RetinaNet and SKU-110K, whose files have no header."""
    numeric = [index for index, cell in enumerate(cells) if is_number(cell) or not cell]
    starts = [start for start in (1, 2) if {*range(start, start + 4)} <= {*numeric}]
    if (
        len(cells) not in (6, 8)
        or not starts
        or not cells[0]
        or (len(cells) == 8 and not {6, 7} <= {*numeric})
    ):
        return None
    start = starts[0] if len(starts) == 1 or not any(cells[1:]) else (1 if 5 not in numeric else 2)
    columns = {"path": 0, "class": 5 if start == 1 else 1}
    columns |= dict(zip(_CORNERS, range(start, start + 4), strict=True))
    return columns | ({"width": 6, "height": 7} if len(cells) == 8 else {})


def _add_row(
    images: dict[str, RawImage], row: Sequence[str], columns: Columns, where: str, raw: RawData
) -> None:
    cells = {name: row[index].strip() if index < len(row) else "" for name, index in columns.items()}
    name = cells["path"].replace("\\", "/")
    if not name or not is_text(name):
        raw.problems.add("annotation-unknown-image", f"{where} without a path")
        return
    image = images.get(name)
    if image is None:
        size_hw = to_number(cells.get("height", "")), to_number(cells.get("width", ""))
        image = images[name] = RawImage((name,), where, size_hw)
    keys = next((keys for keys in (_CORNERS, _SIZES) if set(keys) <= set(columns)), ())
    texts = [cells[key] for key in keys] or re.split(r"[,\s]+", cells["box"].strip("[]() "))
    if cells["class"] or any(texts):
        crowd = cells.get("group") == "1"
        numbers = [to_number(text) for text in texts]
        image.boxes.append(RawBox(numbers, cells["class"] or None, where, crowd))


def write_csv(dataset: Dataset, file_names: Sequence[str], path: Path) -> None:
    """Write one split, with a row for each box, and for each image without boxes."""
    crowds = any(sample.crowd.any() for sample in dataset.samples)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        header = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
        rows.writerow([*header, "iscrowd"] if crowds else header)
        for sample, file_name in zip(dataset.samples, file_names, strict=True):
            image = [file_name, sample.size_hw[1], sample.size_hw[0]]
            boxes = zip(sample.boxes_xyxy.tolist(), sample.class_ids, sample.crowd.astype(int), strict=True)
            for box, c, crowd in boxes:
                corners = [f"{value:.9g}" for value in box]
                rows.writerow([*image, dataset.class_names[c], *corners, *([crowd] if crowds else [])])
            if not len(sample.crowd):
                rows.writerow([*image, *[""] * (6 if crowds else 5)])
