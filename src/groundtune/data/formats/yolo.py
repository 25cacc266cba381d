"""YOLO: one text file per image, a row `class cx cy w h` per box, in shares of the image's width and height.

Found as `data.yaml` (Ultralytics, Roboflow) or as `images/` + `labels/` with a names file. What people have:

- names as a list or as `{0: cat}`; read as text, so that the names `no` and `007` stay what they are.
- Paths of the splits, or lists of files (.txt), relative to `path`, to the file, or to a folder that is not there (Roboflow
  writes `../train/images` for `train/images`): all are tried, and none that leads out of the data folder.
- Rows of more than five numbers are outlines (segments, oriented boxes) and become the boxes around them. With
  `kpt_shape` in the yaml they are key points behind a box, and a sixth number alone is a confidence.
- An image without a label file is an image without objects.

Sizes are not stated, so the frame is the image as viewers show it (EXIF orientation applied), as Ultralytics does.
"""

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from groundtune.data.formats.files import (
    IMAGE_SUFFIXES,
    FolderListing,
    find_name_list,
    inside,
    is_text,
    read_bytes,
    read_text,
    split_folders,
)
from groundtune.data.formats.records import RawBox, RawClass, RawData, RawImage, Source, collector
from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset, Sample
from groundtune.errors import DataError

_LARGEST_YAML = 2**20  # bytes; a file of 10,000 names has a fifth of it
_IMAGES = re.compile(r"^((?:.*/)?)images/", re.DOTALL)  # the last such folder of a path
_SPLIT_KEYS = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}


def find_yolo(root: Path) -> dict[str, Source]:
    """Find the splits of a YOLO folder; none is {}.

    Raises:
        DataError: a `data.yaml` is there and cannot be used, or boxes have no class names.
    """
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")], key=lambda p: (p.stem != "data", p.name)):
        try:
            content = _read_yaml(path)
        except DataError:
            if path.stem in ("data", "dataset"):
                raise
            continue  # a YAML file of something else
        if "names" in content and any(key in content for keys in _SPLIT_KEYS.values() for key in keys):
            return sources_of_yaml(path)
    return _sources_of_folders(root)


def sources_of_yaml(path: Path) -> dict[str, Source]:
    """The splits that a `data.yaml` names.

    Raises:
        DataError: it is not YAML, has no names, or its training images are not there.
    """
    content = _read_yaml(path)
    classes = _classes(content.get("names"), path)
    key_points = "kpt_shape" in content
    sources, looked = {}, {}
    for split, keys in _SPLIT_KEYS.items():
        value = next((content[key] for key in keys if content.get(key)), None)
        if value is None:
            continue
        parts = value if isinstance(value, list) else [value]
        places = [place for part in parts if (place := _resolve(part, content.get("path"), path.parent))]
        if not places:
            looked[split] = value if isinstance(value, str) else "a list"
            continue
        read = partial(_read_split, places=places, root=path.parent, classes=classes, key_points=key_points)
        sources[split] = Source(
            path, [*dict.fromkeys([path.parent, *(place.parent for place in places)])], read
        )
    if not sources or "train" in looked:
        missing = ", ".join(f"{split} {value!r}" for split, value in looked.items()) or "no split at all"
        raise DataError(
            f"{path} names {missing}, which is not there. Expected folders of images or lists of files (.txt) inside "
            f"{path.parent}, relative to it or to 'path'."
        )
    return sources


def _read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, all values as text; a file that is no mapping is {}."""
    try:
        if path.stat().st_size > _LARGEST_YAML:
            raise DataError(
                f"{path} has over 1 MB. Expected a data.yaml with the names and paths of a data set."
            )
        content = yaml.load(read_text(path), Loader=yaml.BaseLoader)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise DataError(
            f"{path} is not YAML{where}. Export the data set again, or correct the file."
        ) from error
    return (
        {key: value for key, value in content.items() if isinstance(key, str)}
        if isinstance(content, dict)
        else {}
    )


def _classes(names: Any, path: Path) -> list[RawClass]:
    """Classes by their number, which is the key of the boxes."""
    entries = list(enumerate(names)) if isinstance(names, list) else []
    if isinstance(names, dict) and all(
        isinstance(key, str) and key.isdecimal() and len(key) < 9 for key in names
    ):
        entries = sorted(((int(key), name) for key, name in names.items()), key=lambda entry: entry[0])
    if not entries or not all(is_text(name) for _, name in entries):
        raise DataError(
            f"{path}: 'names' is not usable. Expected a list of names, or a mapping such as {{0: cat, 1: dog}}."
        )
    return [RawClass(str(number), name, number) for number, name in entries]


def _resolve(value: Any, base: Any, folder: Path) -> Path | None:
    """The folder or list of files that a path of a `data.yaml` means, inside its folder."""
    if not isinstance(value, str) or "\0" in value or not value.strip():
        return None
    text = value.strip().replace("\\", "/")
    below = os.path.normpath(text)
    while below.startswith("../"):
        below = below[3:]
    bases = [folder / base.strip(), folder] if isinstance(base, str) and "\0" not in base else [folder]
    candidates = [b / text for b in bases] + [folder / below] * (not below.startswith("/"))
    for candidate in candidates:
        if inside(candidate, folder) and (
            candidate.is_dir() or (candidate.suffix == ".txt" and candidate.is_file())
        ):
            return Path(os.path.normpath(candidate))
    return None


def _sources_of_folders(root: Path) -> dict[str, Source]:
    """`images/` + `labels/`, with or without folders for the splits, or `train/images` + `train/labels`."""
    places = []
    if (root / "labels").is_dir() and (root / "images").is_dir():
        places = list(split_folders(root / "images")) or [("train", root / "images")]
    pairs = [(split, folder / "images", folder / "labels") for split, folder in split_folders(root)]
    places += [(split, images) for split, images, labels in pairs if images.is_dir() and labels.is_dir()]
    if not places and (root / "classes.txt").is_file() and len(list(root.glob("*.txt"))) > 1:
        places = [("train", root)]
    if not places:
        return {}
    names = find_name_list(
        root, root / "labels", root / "labels/train", root / "train", root / "train/labels"
    )
    if not names:
        raise DataError(
            f"{root} has YOLO labels but no class names, and the model reads names. Add a classes.txt with one name a line, "
            "in the order of the class numbers, or a data.yaml."
        )
    classes = [RawClass(str(number), name, number) for number, name in enumerate(names)]
    read = partial(_read_split, root=root, classes=classes, key_points=False)
    found = {split: [place for other, place in places if other == split] for split, _ in places}
    return {split: Source(own[0], [root], partial(read, places=own)) for split, own in found.items()}


def _read_split(
    file: Path, *, places: Sequence[Path], root: Path, classes: list[RawClass], key_points: bool
) -> RawData:
    problems = collector()
    listing = FolderListing()
    images = []
    for place in places:
        for names in _listed(place, root) if place.is_file() else _images_in(place, root):
            image = RawImage(names, place.name)
            label = _label_file([root / name for name in names], root, listing)
            if label is None:
                problems.add("label-file-missing", names[0])
            else:
                image.boxes = _rows(label, key_points, problems)
            images.append(image)
    return RawData(file, "cxcywh", images, classes, problems, states_size=False)


def _images_in(folder: Path, root: Path) -> list[tuple[str, ...]]:
    """Images of a folder and those below it, relative to the root, in the order of their names."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES]
    return [(os.path.relpath(path, root),) for path in sorted(found)]


def _listed(path: Path, root: Path) -> list[tuple[str, ...]]:
    """Images of a list of files: relative to the list, or to the root, or whole paths that lie inside it."""
    beside = os.path.relpath(path.parent, root)
    found: list[tuple[str, ...]] = []
    for line in read_text(path).splitlines():
        name = line.strip().replace("\\", "/").removeprefix("./")
        if is_text(name) and os.path.basename(name):
            found.append((name,) if beside == "." or name.startswith("/") else (f"{beside}/{name}", name))
    return found


def _label_file(images: Sequence[Path], root: Path, listing: FolderListing) -> Path | None:
    """The label file of an image: in `labels/` for `images/`, or beside it."""
    for image in images:
        beside = image.with_suffix(".txt")
        for candidate in (Path(_IMAGES.sub(r"\1labels/", beside.as_posix())), beside):
            if inside(candidate, root) and listing.has(candidate):
                return Path(os.path.normpath(candidate))
    return None


def _rows(path: Path, key_points: bool, problems: Collector) -> list[RawBox]:
    try:
        text = read_bytes(path).decode("utf-8-sig", errors="replace")
    except OSError as error:
        problems.add("annotation-file-unreadable", f"{path.name} ({error.strerror or error})")
        return []
    boxes = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        try:
            numbers = [float(word) for word in line.split()]
            label = str(int(numbers[0])) if numbers[0].is_integer() else line.split()[0]
        except (ValueError, OverflowError):
            problems.add("annotation-broken", f"{where} {line[:40]!r}")
            continue
        box = numbers[1:5]
        if len(numbers) > 6 and not key_points:
            if len(numbers) % 2 == 0:
                problems.add("annotation-broken", f"{where} with {len(numbers)} numbers")
                continue
            problems.add("segments-to-boxes", where)
            xs, ys = numbers[1::2], numbers[2::2]
            box = [(min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)]
        boxes.append(RawBox(box, label, where))
    return boxes


def write_yolo_labels(sample: Sample, path: Path) -> None:
    """Write one image's label file; crowd boxes have no form here and are left out."""
    height, width = sample.size_hw
    lines = []
    boxes_xyxy, class_ids = (
        sample.boxes_xyxy[~sample.crowd].tolist(),
        sample.class_ids[~sample.crowd].tolist(),
    )
    for (x0, y0, x1, y1), c in zip(boxes_xyxy, class_ids, strict=True):
        shares = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
        lines.append(f"{c} {' '.join(f'{share:.10g}' for share in shares)}\n")
    path.write_text("".join(lines), encoding="utf-8")


def write_yolo_yaml(splits: dict[str, Dataset], path: Path) -> None:
    """Write `data.yaml`; the images of a split are in SPLIT/images beside it."""
    names = next(iter(splits.values())).class_names
    content: dict[str, Any] = {("val" if split == "valid" else split): f"{split}/images" for split in splits}
    content |= {"nc": len(names), "names": dict(enumerate(names))}
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
