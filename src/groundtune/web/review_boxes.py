"""The COCO file that is reviewed, and what people decide about its boxes.

Each decision is written at once, whole or not at all. An accepted box loses its "score", which makes it a person's; a rejected
one leaves the file; undo goes back one decision after the other, as long as the page is served. Everything else in the file
stays as it was, also what cannot be shown.
"""

import json
import threading
from pathlib import Path
from typing import Any

from groundtune.data.formats.coco import coco_lists
from groundtune.data.formats.files import inside, is_text
from groundtune.data.images import load_image, thumbnail
from groundtune.errors import DataError
from groundtune.files import read_json, replacing
from groundtune.text.prompt import clean_name

_SIDE = 1600  # pixels of the shown image's longer side
_LONGEST = 200  # letters of a name


class Boxes:
    """The boxes of one COCO file; any number of threads may ask.

    Args:
        path: the file; its images lie beside it, or deeper.

    Raises:
        DataError: it cannot be read, or is not COCO's.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock, self._decoding = threading.Lock(), threading.Lock()
        self._written = self._stamp()
        self._content = read_json(path)
        images, annotations, self._categories = coco_lists(
            self._content, path, ("images", "annotations", "categories")
        )
        self._images = {row["id"]: row for row in images if _is_image(row)}
        self._rows: dict[int, Any] = dict(enumerate(annotations))
        self._before: list[tuple[int, dict[str, Any], list[Any]]] = []  # what undo brings back

    def shown(self) -> dict[str, Any]:
        """Everything that the page shows, in plain values."""
        with self._lock:
            images = [
                {"id": key, "name": row["file_name"], "width": row["width"], "height": row["height"]}
                for key, row in self._images.items()
            ]
            return self._state() | {
                "images": images,
                "boxes": [self._box(key) for key in self._rows if self._shows(key)],
            }

    def decide(self, what: Any, key: Any, name: Any) -> dict[str, Any]:
        """Carry a decision out, and write it.

        Args:
            what: "accept", "reject", "rename" or "undo".
            key: which box; of "undo" nothing.
            name: of "rename": a class, which is made where it does not exist.

        Returns:
            `key`, the `box` as it is now or None where it is gone, and the classes.

        Raises:
            DataError: the decision cannot be carried out, or the file cannot be written. Then nothing has changed.
        """
        with self._lock:
            if what == "undo":
                if not self._before:
                    raise DataError("There is nothing to undo.")
                key, row, categories = self._before[-1]
            elif type(key) is not int or not self._shows(key):
                raise DataError("That box is gone: another tab removed it. Load the page again.")
            else:
                row, categories = dict(self._rows[key]), list(self._categories)
                if what == "rename":
                    row["category_id"] = self._category(name, categories)
                elif what not in ("accept", "reject"):
                    raise DataError("Expected accept, reject, rename or undo.")
                row.pop("score", None)
            rows = (
                {one: self._rows[one] for one in self._rows if one != key}
                if what == "reject"
                else self._rows | {key: row}
            )
            self._write(dict(sorted(rows.items())), categories)
            if what == "undo":
                self._before.pop()
            else:
                self._before.append((key, self._rows[key], self._categories))
            self._rows, self._categories = dict(sorted(rows.items())), categories
            return self._state() | {"key": key, "box": self._box(key) if key in self._rows else None}

    def image(self, key: int) -> bytes:
        """An image as JPEG, at most 1600 pixels long.

        Raises:
            DataError: there is none, it lies outside of the data set, or it cannot be read.
        """
        row = self._images.get(key)
        if row is None:
            raise DataError("There is no such image.")
        file = self.path.parent / row["file_name"].replace("\\", "/")
        if "\0" in row["file_name"] or not inside(file, self.path.parent):
            raise DataError(f"{row['file_name']} lies outside of the data set, and is not shown.")
        try:
            with self._decoding:  # one at a time: a large one takes a gigabyte
                image = load_image(file, (row["height"], row["width"]))
        except MemoryError as error:
            raise DataError(f"{row['file_name']} is too large for this machine's memory.") from error
        except DataError as error:
            raise DataError(str(error).replace(f"{self.path.parent}/", "")) from error
        return thumbnail(image, _SIDE, 88)

    def _state(self) -> dict[str, Any]:
        classes = [{"id": row["id"], "name": row["name"]} for row in self._categories if _is_class(row)]
        return {"classes": classes, "undo": len(self._before)}

    def _shows(self, key: int) -> bool:
        row = self._rows.get(key)
        if not isinstance(row, dict) or type(row.get("image_id")) is not int:
            return False
        return row["image_id"] in self._images and _four_numbers(row.get("bbox"))

    def _box(self, key: int) -> dict[str, Any]:
        row = self._rows[key]
        score = row.get("score")
        known = {
            "key": key,
            "image": row["image_id"],
            "class": row.get("category_id"),
            "box_xywh": row["bbox"],
        }
        return known | {"score": score if _is_number(score) else None}

    def _category(self, name: Any, categories: list[Any]) -> Any:
        """The id of a class, added to `categories` where it is a new one."""
        name = " ".join(name.split()) if is_text(name) else ""
        if not clean_name(name) or len(name) > _LONGEST:
            raise DataError(f"A class needs a name with letters or digits, at most {_LONGEST}.")
        for row in filter(_is_class, categories):
            if clean_name(row["name"]) == clean_name(name):
                return row["id"]
        ids = [row["id"] for row in categories if _is_class(row) and type(row["id"]) is int]
        categories.append({"id": max(ids, default=0) + 1, "name": name})
        return categories[-1]["id"]

    def _write(self, rows: dict[int, Any], categories: list[Any]) -> None:
        if self._stamp() != self._written:
            raise DataError(
                f"{self.path.name} was changed by another program. Start groundtune review again."
            )
        content = self._content | {"annotations": [*rows.values()], "categories": categories}
        try:
            with replacing(self.path) as file:
                file.write(json.dumps(content).encode())
        except OSError as error:
            raise DataError(
                f"Cannot write {self.path.name}: {error.strerror or error}. Nothing was changed."
            ) from error
        self._written = self._stamp()

    def _stamp(self) -> tuple[int, int]:
        try:
            state = self.path.stat()
        except OSError as error:
            raise DataError(f"Cannot read {self.path}: {error.strerror}. Name a COCO data set.") from error
        return state.st_mtime_ns, state.st_size


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
    )  # no NaN either


def _four_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_image(row: Any) -> bool:
    if not isinstance(row, dict) or type(row.get("id")) is not int or not is_text(row.get("file_name")):
        return False
    return all(type(row.get(side)) is int and row[side] > 0 for side in ("width", "height"))


def _is_class(row: Any) -> bool:
    return isinstance(row, dict) and type(row.get("id")) in (int, str) and is_text(row.get("name"))
