"""CSV: a row per box, or per image without boxes; separated by commas, semicolons or tabs.

    path,class,x1,y1,x2,y2                                  or x,y,w,h, and other usual names
    filename,width,height,class,xmin,ymin,xmax,ymax         Roboflow, TensorFlow; size of the image
    (no header) path,x1,y1,x2,y2,class                      RetinaNet

Classes are sorted by name, or in the order of `classes.txt`.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from groundtune.data.formats.files import find_name_list, is_text, to_number
from groundtune.data.formats.records import RawBox, RawData, RawImage, classes_by_name
from groundtune.errors import DataError
from groundtune.files import read_text

_COLUMNS = {
    "path": "path filename file file_name filepath file_path image image_path img img_path image_name "
    "image_id imageid",
    "class": "class label class_name category label_name labelname category_name name",
    "x1": "x1 xmin x_min left bbox_x1",
    "y1": "y1 ymin y_min top bbox_y1",
    "x2": "x2 xmax x_max right bbox_x2",
    "y2": "y2 ymax y_max bottom bbox_y2",
    "x": "x bbox_x",
    "y": "y bbox_y",
    "w": "w bbox_w bbox_width box_width",
    "h": "h bbox_h bbox_height box_height",
    "width": "width image_width img_width",
    "height": "height image_height img_height",
}
_MEANING = {name: column for column, names in _COLUMNS.items() for name in names.split()}
_CORNERS, _SIZES = ("x1", "y1", "x2", "y2"), ("x", "y", "w", "h")
_EXPECTED = (
    "Expected a header such as path,class,x1,y1,x2,y2 or filename,width,height,class,xmin,ymin,xmax,ymax, or "
    "rows of path,x1,y1,x2,y2,class."
)


def raw_csv(path: Path) -> RawData:
    """Read the records of a CSV file; raise a `DataError` if its columns are not those of boxes."""
    text = read_text(path)
    first_line = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t", key=first_line.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise DataError(f"{path} is not CSV: {error}. {_EXPECTED}") from error
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if not rows:
        raise DataError(f"{path} is empty. {_EXPECTED}")
    columns, has_header = _columns(rows[0], path)
    raw = RawData(
        path, "xyxy" if "x1" in columns else "xywh", states_size={"width", "height"} <= set(columns)
    )
    images: dict[str, RawImage] = {}
    for number, row in enumerate(rows[has_header:], start=1 + has_header):
        _add_row(images, row, columns, f"row {number}", raw)
    raw.images += images.values()
    named = any(box.label for image in raw.images for box in image.boxes)
    raw.classes += classes_by_name(raw.images, find_name_list(path.parent) if named else [])
    return raw


def _columns(first: Sequence[str], path: Path) -> tuple[dict[str, int], bool]:
    """Return the index of each column, and whether the first row is a header."""
    cells = [cell.strip().lower().replace(" ", "_") for cell in first]
    columns: dict[str, int] = {}
    for index, cell in enumerate(cells):
        if cell in _MEANING:
            columns.setdefault(_MEANING[cell], index)
    if "path" in columns and not {"w", "h"} & set(columns) and {"x", "y", "width", "height"} <= set(columns):
        columns |= {"w": columns.pop("width"), "h": columns.pop("height")}  # of the box
    boxes = set(_CORNERS) <= set(columns) or set(_SIZES) <= set(columns)
    if {"path", "class"} <= set(columns) and boxes:
        return columns, True
    numeric = [index for index, cell in enumerate(cells) if isinstance(to_number(cell), float) or not cell]
    if len(cells) == 6 and numeric[-4:] in ([1, 2, 3, 4], [2, 3, 4, 5]) and cells[0]:
        start = numeric[-4]
        corners = dict(zip(_CORNERS, range(start, start + 4), strict=True))
        return {"path": 0, "class": 5 if start == 1 else 1} | corners, False
    if len(cells) == 6 and not any(cells[1:]):  # RetinaNet, without a box
        return {"path": 0, "x1": 1, "y1": 2, "x2": 3, "y2": 4, "class": 5}, False
    found = ", ".join(repr(cell[:30]) for cell in first[:10])
    raise DataError(f"{path}: the columns {found} are not those of boxes. {_EXPECTED}")


def _add_row(
    images: dict[str, RawImage], row: Sequence[str], columns: dict[str, int], where: str, raw: RawData
) -> None:
    cells = {name: row[index].strip() if index < len(row) else "" for name, index in columns.items()}
    name = cells["path"].replace("\\", "/")
    if not name or not is_text(name):
        raw.problems.add("annotation-unknown-image", f"{where} without a path")
        return
    image = images.get(name)
    if image is None:
        size_hw = to_number(cells.get("height", "")), to_number(cells.get("width", ""))
        base = name.rpartition("/")[2]
        image = images[name] = RawImage(tuple(dict.fromkeys([name, base or name])), where, size_hw)
    keys = _CORNERS if "x1" in columns else _SIZES
    if cells["class"] or any(cells[key] for key in keys):
        image.boxes.append(RawBox([to_number(cells[key]) for key in keys], cells["class"] or None, where))
