"""A clean data set, and for each check of `groundtune check` a way to plant its fault."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from groundtune.data.scenes import write_scenes

CLASSES = ["red circle", "blue star", "green triangle"]


Change = Callable[[Image.Image], Image.Image]


@dataclass
class Copy:
    """A copy of the clean data set whose COCO files can be changed."""

    folder: Path
    train: dict[str, Any]
    valid: dict[str, Any]

    def path(self, index: int, split: str = "train") -> Path:
        return self.folder / split / self.images(split)[index]["file_name"]

    def images(self, split: str) -> list[dict[str, Any]]:
        return {"train": self.train, "valid": self.valid}[split]["images"]

    def name(self, *names: str) -> None:
        """Rename the classes, and add classes without boxes for additional names."""
        for content in (self.train, self.valid):
            categories = content["categories"]
            for number, name in enumerate(names, 1):
                if number < len(categories):
                    categories[number]["name"] = name
                else:
                    categories.append({"id": number, "name": name, "supercategory": "shapes"})

    def box(self, index: int, bbox: list[Any], category: int = 1, **more: Any) -> None:
        rows = self.train["annotations"]
        row = {"id": len(rows) + 1, "image_id": self.train["images"][index]["id"], "category_id": category}
        rows.append({**row, "bbox": bbox, "iscrowd": 0, **more})

    def rows(self, index: int) -> list[dict[str, Any]]:
        """Annotations of a training image."""
        image_id = self.train["images"][index]["id"]
        return [row for row in self.train["annotations"] if row["image_id"] == image_id]

    def with_boxes(self, least: int = 1) -> int:
        """The first training image with at least so many boxes."""
        return next(i for i in range(len(self.train["images"])) if len(self.rows(i)) >= least)

    def each_box(self, change: Callable[[list[float]], list[float]]) -> None:
        for row in self.train["annotations"]:
            row["bbox"] = change(row["bbox"])

    def near_box(self, smaller: float, turn: int = 0) -> None:
        """Repeat a box, a little less high, with another class."""
        index = self.with_boxes()
        row = self.rows(index)[0]
        x, y, width, height = row["bbox"]
        self.box(index, [x, y, width, height - smaller], (row["category_id"] - 1 + turn) % 3 + 1)

    def replace(self, suffix: str, change: Change, index: int = 0, **options: Any) -> None:
        """Save a training image in another form."""
        old = self.path(index)
        with Image.open(old) as image:
            changed = change(image)
        self.train["images"][index]["file_name"] = new = f"{old.stem}{suffix}"
        old.unlink()
        changed.save(old.with_name(new), **options)

    def save(self) -> None:
        for split, content in (("train", self.train), ("valid", self.valid)):
            if (self.folder / split).is_dir():
                (self.folder / split / "_annotations.coco.json").write_text(json.dumps(content))


def write_clean(folder: Path) -> Path:
    """Write a data set without errors and warnings."""
    write_scenes(folder, train=24, valid=12, classes=CLASSES, size=96, seed=1)
    return folder


def open_copy(clean: Path, folder: Path) -> Copy:
    shutil.copytree(clean, folder)
    paths = [folder / split / "_annotations.coco.json" for split in ("train", "valid")]
    return Copy(folder, *(json.loads(path.read_text()) for path in paths))


def _orientation(value: int, turned: bool) -> Callable[[Copy], None]:
    def plant(copy: Copy) -> None:
        index = next(i for i, image in enumerate(copy.train["images"]) if image["width"] != image["height"])
        exif = Image.Exif()
        exif[0x0112] = value
        change = Image.Transpose.ROTATE_90 if turned else Image.Transpose.FLIP_LEFT_RIGHT
        copy.replace(".jpg", lambda image: image.transpose(change), index, exif=exif)

    return plant


def _cut(copy: Copy) -> None:
    content = copy.path(0).read_bytes()
    copy.path(0).write_bytes(content[: len(content) // 2])


def _copy_over(source: Copy, index: int, split: str, quality: int | None) -> None:
    target = source.path(index, split)
    first = source.train["images"][0]
    source.images(split)[index].update(width=first["width"], height=first["height"])
    if quality is None:
        shutil.copy(source.path(0), target)
    else:
        with Image.open(source.path(0)) as image:
            image.save(target, quality=quality)


def _test_only(copy: Copy) -> None:
    (copy.folder / "train").rename(copy.folder / "test")
    shutil.rmtree(copy.folder / "valid")


def _shared_file(copy: Copy) -> None:
    """COCO's own layout, in which both files can list one image."""
    (copy.folder / "annotations").mkdir()
    (copy.folder / "images").mkdir()
    copy.valid["images"][0]["file_name"] = copy.train["images"][0]["file_name"]
    for split, content in (("train", copy.train), ("val", copy.valid)):
        (copy.folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    for path in [*copy.folder.glob("train/*.jpg"), *copy.folder.glob("valid/*.jpg")]:
        path.rename(copy.folder / "images" / path.name)
    shutil.rmtree(copy.folder / "train")
    shutil.rmtree(copy.folder / "valid")


def _few_valid(copy: Copy) -> None:
    copy.valid["images"] = copy.valid["images"][:4]
    kept = {image["id"] for image in copy.valid["images"]}
    copy.valid["annotations"] = [row for row in copy.valid["annotations"] if row["image_id"] in kept]


def _only(split: str, least: int) -> Callable[[Copy], None]:
    """Add a fourth class with so many boxes in one split."""

    def plant(copy: Copy) -> None:
        copy.name(*CLASSES, "pink cross")
        rows = {"train": copy.train, "valid": copy.valid}[split]["annotations"]
        for row in rows[:least]:
            row["category_id"] = 4

    return plant


def _imbalance(copy: Copy) -> None:
    copy.name(*CLASSES, "pink cross")
    for row in [*copy.train["annotations"][:2], *copy.valid["annotations"][:2]]:
        row["category_id"] = 4
    for number in range(40):
        for index in range(6):
            copy.box(index, [number % 20 * 3, number // 20 * 10, 2.9, 9.5 - index / 10])


def _empty(copy: Copy) -> None:
    keep = {image["id"] for image in copy.train["images"][:8]}
    copy.train["annotations"] = [row for row in copy.train["annotations"] if row["image_id"] in keep]


def _inside(copy: Copy) -> None:
    copy.name(*CLASSES, "pink cross")
    for index in range(6):
        copy.box(index, [10, 10, 30, 30])
        copy.box(index, [14, 14, 9, 9 + index / 10], category=4)


def _captions(regions: list[dict[str, Any]]) -> Callable[[Copy], None]:
    """Replace the COCO files by ODVG grounding data."""

    def plant(copy: Copy) -> None:
        for split in ("train", "valid"):
            grounding = {"caption": "a red circle and a dog", "regions": regions}
            rows = [
                {"filename": image["file_name"], "height": image["height"], "width": image["width"]}
                for image in copy.images(split)
            ]
            lines = [json.dumps(row | {"grounding": grounding}) for row in rows]
            (copy.folder / split / "_annotations.coco.json").unlink()
            (copy.folder / split / "data.jsonl").write_text("\n".join(lines))

    return plant


_CIRCLE = {"phrase": "red circle", "tokens_positive": [[2, 12]], "bbox": [5, 5, 40, 40]}

PLANTS: dict[str, Callable[[Copy], object]] = {
    "name-number": lambda copy: copy.name("7"),
    "name-meaningless": lambda copy: copy.name("label0"),
    "name-abbreviation": lambda copy: copy.name("rbc"),
    "name-separator": lambda copy: copy.name("st. bernard"),
    "name-parentheses": lambda copy: copy.name("cup (empty)"),
    "name-unknown-token": lambda copy: copy.name("\u13e3\u13b3\u13a9"),
    "name-without-token": lambda copy: copy.name("\u200b"),
    "name-too-long": lambda copy: copy.name("very " * 260 + "long"),
    "names-over-budget": lambda copy: copy.name(
        *CLASSES, *(f"kind {chr(97 + i // 26)}{chr(97 + i % 26)} of thing" for i in range(60))
    ),
    "names-same-tokens": lambda copy: copy.name("café", "cafe"),
    "names-alike": lambda copy: copy.name("remote control", "remote controls"),
    "names-mirrored": lambda copy: copy.name("left arrow", "right arrow"),
    "split-missing": _test_only,
    "split-without-boxes": lambda copy: copy.valid["annotations"].clear(),
    "split-small": _few_valid,
    "file-in-two-splits": _shared_file,
    "class-without-boxes": lambda copy: copy.name(*CLASSES, "pink cross"),
    "class-one-box": _only("train", 1),
    "class-only-valid": _only("valid", 2),
    "class-only-train": _only("train", 3),
    "class-imbalance": _imbalance,
    "images-empty": lambda copy: copy.train["annotations"].remove(copy.rows(copy.with_boxes())[0]),
    "images-mostly-empty": _empty,
    "object-tiny": lambda copy: copy.box(0, [10, 10, 1, 1]),
    "objects-mostly-tiny": lambda copy: copy.each_box(lambda box: [*box[:2], 1, 1]),
    "box-covers-image": lambda copy: copy.box(0, [0, 0, 96, 96]),
    "box-extreme-ratio": lambda copy: copy.box(0, [1, 1, 70, 2]),
    "box-near-duplicate": lambda copy: copy.near_box(0.5),
    "box-two-classes": lambda copy: copy.near_box(0, turn=1),
    "boxes-many": lambda copy: [copy.box(0, [i % 14 * 5, i // 14 * 5, 4, 4]) for i in range(101)],
    "class-inside-class": _inside,
    "span-in-word": _captions([_CIRCLE, {**_CIRCLE, "tokens_positive": [[2, 4]]}]),
    "phrase-without-boxes": _captions(
        [_CIRCLE, {"phrase": "dog", "tokens_positive": [[19, 22]], "bbox": []}]
    ),
    "image-corrupt": lambda copy: copy.path(0).write_bytes(b"no image" * 50),
    "image-truncated": _cut,
    "image-bomb": lambda copy: copy.replace(".png", lambda p: Image.new("1", (10_000, 9_000))),
    "image-size-wrong": lambda copy: copy.replace(".jpg", lambda p: p.resize((p.width // 2, p.height))),
    "image-rescaled": lambda copy: copy.replace(".jpg", lambda p: p.resize((2 * p.width, 2 * p.height))),
    "exif-turned": _orientation(6, turned=True),
    "exif-ignored": _orientation(6, turned=False),
    "exif-undecided": _orientation(3, turned=False),
    "image-deep": lambda copy: copy.replace(".png", lambda p: p.convert("L").convert("I;16")),
    "image-animated": lambda copy: copy.replace(
        ".gif", lambda p: p.copy(), save_all=True, append_images=[Image.new("RGB", (96, 96))]
    ),
    "image-blank": lambda copy: copy.replace(".png", lambda p: Image.new("RGB", p.size, (250, 250, 250))),
    "file-unused": lambda copy: shutil.copy(copy.path(0), copy.folder / "train/more.jpg"),
    "duplicate-file": lambda copy: _copy_over(copy, 1, "train", None),
    "near-duplicate": lambda copy: _copy_over(copy, 1, "train", 60),
    "leak-exact": lambda copy: _copy_over(copy, 0, "valid", None),
    "leak-near": lambda copy: _copy_over(copy, 0, "valid", 60),
    "data-unreadable": lambda copy: (copy.folder / "train/_annotations.coco.json").write_text("{"),
    # problems of reading
    "image-missing": lambda copy: copy.path(0).unlink(),
    "image-unreadable": lambda copy: (copy.path(0).write_bytes(b"x"), copy.train["images"][0].pop("width")),
    "image-id-twice": lambda copy: copy.train["images"][1].update(id=copy.train["images"][0]["id"]),
    "annotation-unknown-image": lambda copy: copy.box(0, [5, 5, 20, 20], image_id=999),
    "annotation-unknown-category": lambda copy: copy.box(0, [5, 5, 20, 20], category_id=99),
    "box-not-numbers": lambda copy: copy.box(0, [5, 5, "x", 20]),
    "box-outside": lambda copy: copy.box(0, [500, 5, 20, 20]),
    "box-clipped": lambda copy: copy.box(0, [-10, 5, 40, 20]),
    "box-zero-area": lambda copy: copy.box(0, [5, 5, 0, 20]),
    "box-inverted": lambda copy: copy.box(0, [30, 30, -20, 20]),
    "boxes-look-xyxy": lambda copy: copy.each_box(lambda box: [*box[:2], box[0] + box[2], box[1] + box[3]]),
    "boxes-look-normalized": lambda copy: copy.each_box(lambda box: [value / 96 for value in box]),
    "box-duplicate": lambda copy: copy.train["annotations"].append(dict(copy.train["annotations"][0])),
    "category-id-twice": lambda copy: copy.train["categories"].append({"id": 1, "name": "dog"}),
    "category-placeholder": lambda copy: None,
    "names-merged": lambda copy: copy.name("red circle", "red circle"),
    "crowd-regions": lambda copy: copy.box(0, [5, 5, 30, 30], iscrowd=1),
}
