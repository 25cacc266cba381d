"""CSV: a row per box, or per image without one.

With a header, whose names may be any of the usual ones: path,class,x1,y1,x2,y2, or Roboflow's and TensorFlow's
filename,width,height,class,xmin,ymin,xmax,ymax (width and height are the image's), or path,x,y,w,h,class. Without a
header, as RetinaNet's: path,x1,y1,x2,y2,class. Separated by commas, semicolons or tabs. Classes are sorted by name, or in
the order of a `classes.txt` beside the file.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from groundtune.data.formats.files import find_name_list, is_text, read_text
from groundtune.data.formats.records import BoxForm, RawBox, RawData, RawImage, classes_by_name, collector
from groundtune.data.problems import Collector
from groundtune.errors import DataError

_COLUMNS = {
    "path": "path filename file file_name filepath file_path image image_path img img_path image_name image_id imageid",
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
    "Expected a header such as path,class,x1,y1,x2,y2 or filename,width,height,class,xmin,ymin,xmax,ymax, or rows of "
    "path,x1,y1,x2,y2,class"
)


def raw_csv(path: Path) -> RawData:
    """Take the records out of a CSV file.

    Raises:
        DataError: it cannot be read, or its columns are not those of boxes.
    """
    text = read_text(path)
    first_line = text.lstrip().split("\n", 1)[0]
    delimiter = max(",;\t", key=first_line.count)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise DataError(f"{path} is not CSV: {error}. {_EXPECTED}.") from error
    rows = [row for row in rows if any(cell.strip() for cell in row)]
    if not rows:
        raise DataError(f"{path} is empty. {_EXPECTED}.")
    columns, has_header = _columns(rows[0], path)
    form: BoxForm = "xyxy" if "x1" in columns else "xywh"
    problems = collector()
    images: dict[str, RawImage] = {}
    for number, row in enumerate(rows[has_header:], start=1 + has_header):
        _add_row(images, row, columns, f"row {number}", problems)
    named = any(box.label for image in images.values() for box in image.boxes)
    classes = classes_by_name([*images.values()], find_name_list(path.parent) if named else [])
    return RawData(path, form, [*images.values()], classes, problems, {"width", "height"} <= set(columns))


def _columns(first: Sequence[str], path: Path) -> tuple[dict[str, int], bool]:
    """Where each column is, and whether the first row is a header."""
    cells = [cell.strip().lower().replace(" ", "_") for cell in first]
    columns: dict[str, int] = {}
    for place, cell in enumerate(cells):
        if cell in _MEANING:
            columns.setdefault(_MEANING[cell], place)
    if "path" in columns and not {"w", "h"} & set(columns) and {"x", "y", "width", "height"} <= set(columns):
        columns |= {"w": columns.pop("width"), "h": columns.pop("height")}  # with x and y they are the box's
    boxes = set(_CORNERS) <= set(columns) or set(_SIZES) <= set(columns)
    if {"path", "class"} <= set(columns) and boxes:
        return columns, True
    numeric = [place for place, cell in enumerate(cells) if isinstance(_value(cell), float) or not cell]
    if len(cells) == 6 and numeric[-4:] in ([1, 2, 3, 4], [2, 3, 4, 5]) and cells[0]:
        start = numeric[-4]
        named = dict(zip(_CORNERS, range(start, start + 4), strict=True))
        return {"path": 0, "class": 5 if start == 1 else 1} | named, False
    if len(cells) == 6 and not any(cells[1:]):  # RetinaNet's first image may have no box
        return {"path": 0, "x1": 1, "y1": 2, "x2": 3, "y2": 4, "class": 5}, False
    found = ", ".join(repr(cell[:30]) for cell in first[:10])
    raise DataError(f"{path}: the columns {found} are not those of boxes. {_EXPECTED}.")


def _add_row(
    images: dict[str, RawImage], row: Sequence[str], columns: dict[str, int], where: str, problems: Collector
) -> None:
    cells = {name: row[place].strip() if place < len(row) else "" for name, place in columns.items()}
    name = cells["path"].replace("\\", "/")
    if not name or not is_text(name):
        problems.add("annotation-unknown-image", f"{where} without a path")
        return
    image = images.get(name)
    if image is None:
        size_hw = _value(cells.get("height", "")), _value(cells.get("width", ""))
        base = name.rpartition("/")[2]
        image = images[name] = RawImage(tuple(dict.fromkeys([name, base or name])), where, size_hw)
    keys = _CORNERS if "x1" in columns else _SIZES
    if cells["class"] or any(cells[key] for key in keys):
        image.boxes.append(RawBox([_value(cells[key]) for key in keys], cells["class"] or None, where))


def _value(cell: str) -> float | str:
    try:
        return float(cell)
    except ValueError:
        return cell
