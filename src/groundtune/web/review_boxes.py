"""The COCO file under review, and the decisions about its boxes.

Each decision is written at once and atomically. An accepted box loses its "score", a rejected box
is removed; undo goes back decision by decision. The rest of the file is not changed, even if it is
invalid.
"""

import json
import threading
from pathlib import Path
from typing import Any

from groundtune.data.formats.coco import coco_lists
from groundtune.data.formats.files import is_text
from groundtune.data.formats.tree import inside
from groundtune.data.images import load_image, thumbnail
from groundtune.errors import DataError
from groundtune.files import atomic_write, read_json
from groundtune.text.prompt import clean_name, words_of

_MAX_SIDE = 1600  # pixels of the displayed image
_MAX_NAME = 200  # characters


class Boxes:
    """The boxes of one COCO file; thread-safe.

    Args:
        path: the file, in the directory of its images or above.

    Raises:
        DataError: it cannot be read, or is not a COCO file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock, self._decoding = threading.Lock(), threading.Lock()
        self._written = self._stamp()
        self._content = read_json(path)
        lists = ("images", "annotations", "categories")
        images, annotations, self._categories = coco_lists(self._content, path, lists)
        self._images = {row["id"]: row for row in images if _is_image(row)}
        self._rows: dict[int, Any] = dict(enumerate(annotations))
        self._history: list[tuple[int, dict[str, Any], list[Any]]] = []

    def state(self) -> dict[str, Any]:
        """Return images, boxes, classes and the number of undoable decisions as plain values."""
        with self._lock:
            images = [
                {"id": key, "name": row["file_name"], "width": row["width"], "height": row["height"]}
                for key, row in self._images.items()
            ]
            boxes = [self._box(key) for key in self._rows if self._is_valid(key)]
            return self._classes() | {"images": images, "boxes": boxes}

    def decide(self, action: Any, key: Any, name: Any) -> dict[str, Any]:
        """Apply "accept", "reject", "rename" (to a new or old name) or "undo", and write the file.

        Returns: `key`, the new `box` (None if removed), `classes`, and the number of decisions to
        `undo`.

        Raises:
            DataError: the decision is invalid or the file cannot be written; nothing has changed.
        """
        with self._lock:
            if action == "undo":
                if not self._history:
                    raise DataError("There is nothing to undo.")
                key, row, categories = self._history[-1]
            elif type(key) is not int or not self._is_valid(key):
                raise DataError("This box was removed in another tab. Reload the page.")
            else:
                row, categories = dict(self._rows[key]), list(self._categories)
                if action == "rename":
                    row["category_id"] = _category_id(name, categories)
                elif action not in ("accept", "reject"):
                    raise DataError("Expected accept, reject, rename or undo.")
                row.pop("score", None)
            rows = self._rows | {key: row}
            if action == "reject":
                del rows[key]
            rows = dict(sorted(rows.items()))
            self._write(rows, categories)
            if action == "undo":
                self._history.pop()
            else:
                self._history.append((key, self._rows[key], self._categories))
            self._rows, self._categories = rows, categories
            return self._classes() | {"key": key, "box": self._box(key) if key in rows else None}

    def image(self, key: int) -> bytes:
        """Return an image as JPEG, at most 1600 pixels long, or raise a `DataError`."""
        row = self._images.get(key)
        if row is None:
            raise DataError("There is no such image.")
        name = row["file_name"]
        file = self.path.parent / name.replace("\\", "/")
        if "\0" in name or not inside(file, self.path.parent):
            raise DataError(f"{name} is outside of the data set, so it is not shown.")
        try:
            with self._decoding:  # one at a time: a large one takes a gigabyte
                image = load_image(file, (row["height"], row["width"]))
        except MemoryError as error:
            raise DataError(f"{name} is too large for the memory of the server.") from error
        except DataError as error:
            raise DataError(str(error).replace(f"{self.path.parent}/", "")) from error
        return thumbnail(image, _MAX_SIDE, 88)

    def _classes(self) -> dict[str, Any]:
        classes = [{"id": row["id"], "name": row["name"]} for row in self._categories if _is_class(row)]
        return {"classes": classes, "undo": len(self._history)}

    def _is_valid(self, key: int) -> bool:
        row = self._rows.get(key)
        if not isinstance(row, dict) or type(row.get("image_id")) is not int:
            return False
        bbox = row.get("bbox")
        four_numbers = isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox))
        return row["image_id"] in self._images and four_numbers

    def _box(self, key: int) -> dict[str, Any]:
        row = self._rows[key]
        score = row["score"] if _is_number(row.get("score")) else None
        box = {"key": key, "image": row["image_id"], "class": row.get("category_id"), "box_xywh": row["bbox"]}
        return box | {"score": score}

    def _write(self, rows: dict[int, Any], categories: list[Any]) -> None:
        if self._stamp() != self._written:
            raise DataError(f"Another program changed {self.path.name}. Restart groundtune review.")
        content = self._content | {"annotations": [*rows.values()], "categories": categories}
        try:
            with atomic_write(self.path) as file:
                file.write(json.dumps(content).encode())
        except OSError as error:
            reason = error.strerror or error
            raise DataError(f"Cannot write {self.path.name}: {reason}. Nothing was changed.") from error
        self._written = self._stamp()

    def _stamp(self) -> tuple[int, int]:
        try:
            stat = self.path.stat()
        except OSError as error:
            why = f"{error.strerror}. Expected a COCO data set."
            raise DataError(f"Cannot read {self.path}: {why}") from error
        return stat.st_mtime_ns, stat.st_size


def _category_id(name: Any, categories: list[Any]) -> Any:
    """Return the id of a class; a new class is added to `categories`."""
    classes = [row for row in categories if _is_class(row)]
    for row in classes:
        if row["name"] == name:
            return row["id"]
    name = " ".join(name.split()) if is_text(name) else ""
    if not clean_name(name) or len(name) > _MAX_NAME:
        raise DataError(f"A class needs a name with letters or digits, at most {_MAX_NAME} characters.")
    for row in classes:
        if words_of(row["name"]) == words_of(name):
            return row["id"]
    new_id = max((row["id"] for row in classes if type(row["id"]) is int), default=0) + 1
    categories.append({"id": new_id, "name": name})
    return new_id


def _is_number(value: Any) -> bool:  # not NaN
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _is_image(row: Any) -> bool:
    if not isinstance(row, dict) or type(row.get("id")) is not int or not is_text(row.get("file_name")):
        return False
    return all(type(row.get(side)) is int and row[side] > 0 for side in ("width", "height"))


def _is_class(row: Any) -> bool:
    return isinstance(row, dict) and type(row.get("id")) in (int, str) and is_text(row.get("name"))
