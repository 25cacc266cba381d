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

    def replace(
        self, index: int, suffix: str, change: Callable[[Image.Image], Image.Image], **options: Any
    ) -> None:
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
    contents = [
        json.loads((folder / split / "_annotations.coco.json").read_text()) for split in ("train", "valid")
    ]
    return Copy(folder, *contents)


def _named(*names: str) -> Callable[[Copy], None]:
    return lambda copy: copy.name(*names)


def _boxed(*boxes: list[Any], **more: Any) -> Callable[[Copy], None]:
    def plant(copy: Copy) -> None:
        for box in boxes:
            copy.box(0, box, **more)

    return plant


def _saved(
    suffix: str, change: Callable[[Image.Image], Image.Image], **options: Any
) -> Callable[[Copy], None]:
    return lambda copy: copy.replace(0, suffix, change, **options)


def _orientation(value: int, turned: bool) -> Callable[[Copy], None]:
    def plant(copy: Copy) -> None:
        index = next(i for i, image in enumerate(copy.train["images"]) if image["width"] != image["height"])
        exif = Image.Exif()
        exif[0x0112] = value
        copy.replace(
            index, ".jpg", lambda p: p.transpose(Image.Transpose.ROTATE_90) if turned else p.copy(), exif=exif
        )

    return plant


def _resized(scale: tuple[float, float]) -> Callable[[Copy], None]:
    return _saved(".jpg", lambda p: p.resize((round(p.width * scale[0]), round(p.height * scale[1]))))


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


def _again(copy: Copy) -> dict[str, Any]:
    return copy.rows(copy.with_boxes())[0]


def _near_box(copy: Copy) -> None:
    x, y, width, height = _again(copy)["bbox"]
    copy.box(copy.with_boxes(), [x, y, width, height - 0.5], _again(copy)["category_id"])


def _two_classes(copy: Copy) -> None:
    copy.box(copy.with_boxes(), _again(copy)["bbox"], _again(copy)["category_id"] % 3 + 1)


def _captions(regions: list[dict[str, Any]]) -> Callable[[Copy], None]:
    """Replace the COCO files by ODVG grounding data."""

    def plant(copy: Copy) -> None:
        for split in ("train", "valid"):
            lines = [
                json.dumps(
                    {
                        "filename": image["file_name"],
                        "height": image["height"],
                        "width": image["width"],
                        "grounding": {"caption": "a red circle and a dog", "regions": regions},
                    }
                )
                for image in copy.images(split)
            ]
            (copy.folder / split / "_annotations.coco.json").unlink()
            (copy.folder / split / "data.jsonl").write_text("\n".join(lines))

    return plant


def _unread(copy: Copy) -> None:
    (copy.folder / "train/_annotations.coco.json").write_text("{")


def _change(change: Callable[[Copy], Any]) -> Callable[[Copy], None]:
    def plant(copy: Copy) -> None:
        change(copy)

    return plant


def _all_boxes(change: Callable[[list[float]], list[float]]) -> Callable[[Copy], None]:
    def plant(copy: Copy) -> None:
        for row in copy.train["annotations"]:
            row["bbox"] = change(row["bbox"])

    return plant


_CIRCLE = {"phrase": "red circle", "tokens_positive": [[2, 12]], "bbox": [5, 5, 40, 40]}

PLANTS: dict[str, Callable[[Copy], None]] = {
    "name-number": _named("7"),
    "name-meaningless": _named("label0"),
    "name-abbreviation": _named("rbc"),
    "name-separator": _named("st. bernard"),
    "name-parentheses": _named("cup (empty)"),
    "name-unknown-token": _named("\u13e3\u13b3\u13a9"),
    "name-without-token": _named("\u200b"),
    "name-too-long": _named("very " * 260 + "long"),
    "names-over-budget": _named(
        *CLASSES, *(f"kind {chr(97 + i // 26)}{chr(97 + i % 26)} of thing" for i in range(60))
    ),
    "names-same-tokens": _named("café", "cafe"),
    "names-alike": _named("remote control", "remote controls"),
    "split-missing": _test_only,
    "split-without-boxes": _change(lambda copy: copy.valid["annotations"].clear()),
    "split-small": _few_valid,
    "file-in-two-splits": _shared_file,
    "class-without-boxes": _named(*CLASSES, "pink cross"),
    "class-one-box": _only("train", 1),
    "class-only-valid": _only("valid", 2),
    "class-only-train": _only("train", 3),
    "class-imbalance": _imbalance,
    "images-empty": _change(lambda copy: copy.train["annotations"].remove(copy.rows(copy.with_boxes())[0])),
    "images-mostly-empty": _empty,
    "object-tiny": _boxed([10, 10, 1, 1]),
    "objects-mostly-tiny": _all_boxes(lambda box: [*box[:2], 1, 1]),
    "box-covers-image": _boxed([0, 0, 96, 96]),
    "box-extreme-ratio": _boxed([1, 1, 70, 2]),
    "box-near-duplicate": _near_box,
    "box-two-classes": _two_classes,
    "boxes-many": _boxed(*([i % 14 * 5, i // 14 * 5, 4, 4] for i in range(101))),
    "class-inside-class": _inside,
    "span-in-word": _captions([_CIRCLE, {**_CIRCLE, "tokens_positive": [[2, 4]]}]),
    "phrase-without-boxes": _captions(
        [_CIRCLE, {"phrase": "dog", "tokens_positive": [[19, 22]], "bbox": []}]
    ),
    "image-corrupt": _change(lambda copy: copy.path(0).write_bytes(b"no image" * 50)),
    "image-truncated": _cut,
    "image-bomb": _saved(".png", lambda p: Image.new("1", (10_000, 9_000))),
    "image-size-wrong": _resized((0.5, 1)),
    "image-rescaled": _resized((2, 2)),
    "exif-turned": _orientation(6, turned=True),
    "exif-ignored": _orientation(6, turned=False),
    "exif-undecided": _orientation(3, turned=False),
    "image-deep": _saved(".png", lambda p: p.convert("L").convert("I;16")),
    "image-animated": _saved(
        ".gif", lambda p: p.copy(), save_all=True, append_images=[Image.new("RGB", (96, 96))]
    ),
    "image-blank": _saved(".png", lambda p: Image.new("RGB", p.size, (250, 250, 250))),
    "file-unused": _change(lambda copy: shutil.copy(copy.path(0), copy.folder / "train/more.jpg")),
    "duplicate-file": lambda copy: _copy_over(copy, 1, "train", None),
    "near-duplicate": lambda copy: _copy_over(copy, 1, "train", 60),
    "leak-exact": lambda copy: _copy_over(copy, 0, "valid", None),
    "leak-near": lambda copy: _copy_over(copy, 0, "valid", 60),
    "data-unreadable": _unread,
    # problems of reading
    "image-missing": _change(lambda copy: copy.path(0).unlink()),
    "image-unreadable": _change(
        lambda copy: (copy.path(0).write_bytes(b"x"), copy.train["images"][0].pop("width"))
    ),
    "image-id-twice": _change(lambda copy: copy.train["images"][1].update(id=copy.train["images"][0]["id"])),
    "annotation-unknown-image": _boxed([5, 5, 20, 20], image_id=999),
    "annotation-unknown-category": _boxed([5, 5, 20, 20], category_id=99),
    "box-not-numbers": _boxed([5, 5, "x", 20]),
    "box-outside": _boxed([500, 5, 20, 20]),
    "box-clipped": _boxed([-10, 5, 40, 20]),
    "box-zero-area": _boxed([5, 5, 0, 20]),
    "box-inverted": _boxed([30, 30, -20, 20]),
    "boxes-look-xyxy": _all_boxes(lambda box: [*box[:2], box[0] + box[2], box[1] + box[3]]),
    "boxes-look-normalized": _all_boxes(lambda box: [value / 96 for value in box]),
    "box-duplicate": _change(
        lambda copy: copy.train["annotations"].append(dict(copy.train["annotations"][0]))
    ),
    "category-id-twice": _change(lambda copy: copy.train["categories"].append({"id": 1, "name": "dog"})),
    "category-placeholder": lambda copy: None,
    "names-merged": _named("red circle", "red circle"),
    "crowd-regions": _boxed([5, 5, 30, 30], iscrowd=1),
}
