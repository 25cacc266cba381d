"""YOLO: one text file per image, a row `class cx cy w h` per box, normalized by the image's size.

The data set is a `data.yaml` (Ultralytics, Roboflow), or `images/` and `labels/` with a names file.

- Names are a list or a mapping `{0: cat}`, read as text, so that `no` and `007` are not changed.
- Splits are folders or lists of files (.txt). Their paths may be relative to `path`, to the file,
  or to a folder that does not exist (Roboflow writes `../train/images` for `train/images`), but
  must be in the data folder.
- Rows of more than five numbers are outlines, which become their bounding boxes. With `kpt_shape`
  in the YAML they are key points behind a box. A sixth number alone is a score.
- An image without a label file is an image without objects.

Sizes are not stated: they are those of the images as viewers show them (EXIF), as in Ultralytics.
"""

import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from groundtune.data.formats.files import find_name_list, inside, is_text, listed_folders, split_folders
from groundtune.data.formats.records import RawBox, RawClass, RawData, RawImage, Source
from groundtune.data.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, has_suffix, is_visible
from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset, Sample
from groundtune.errors import DataError
from groundtune.files import parse_yaml, read_bytes, read_text

_MAX_YAML = 2**20  # bytes; a file of 10,000 names has a fifth of it
_IMAGES = re.compile(r"^((?:.*/)?)images/", re.DOTALL)  # the last such folder of a path
_SPLIT_KEYS = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}


def find_yolo(root: Path) -> dict[str, Source]:
    """Find the splits of a YOLO folder; {} if it is none.

    Raises:
        DataError: there is a `data.yaml` that cannot be used, or boxes have no class names.
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
    """Return the splits of a `data.yaml`; raise a `DataError` without names or training images."""
    content = _read_yaml(path)
    classes = _classes(content.get("names"), path)
    sources, missing = {}, {}
    for split, keys in _SPLIT_KEYS.items():
        value = next((content[key] for key in keys if content.get(key)), None)
        if value is None:
            continue
        parts = value if isinstance(value, list) else [value]
        found = [entry for part in parts if (entry := _resolve(part, content.get("path"), path.parent))]
        if not found:
            missing[split] = repr(value if isinstance(value, str) else "a list")
            continue
        folders = dict.fromkeys([path.parent, *(entry.parent for entry in found)])
        read = partial(
            _read_split, entries=found, root=path.parent, classes=classes, key_points="kpt_shape" in content
        )
        sources[split] = Source(path, [*folders], read)
    if not sources or "train" in missing:
        names = ", ".join(f"{split} {value}" for split, value in missing.items()) or "no split at all"
        raise DataError(
            f"{path} names {names}, which does not exist. Expected folders of images or lists of files "
            f"(.txt) inside {path.parent}, relative to it or to 'path'."
        )
    return sources


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read the mapping of a YAML file, all values as text; {} if it is no mapping."""
    if path.stat().st_size > _MAX_YAML:
        raise DataError(f"{path} has over 1 MB. Expected a data.yaml with the names and paths of a data set.")
    try:
        content = parse_yaml(read_text(path), yaml.BaseLoader)
    except ValueError as error:
        raise DataError(
            f"{path} is not YAML{error}. Export the data set again, or correct the file."
        ) from error
    return {k: v for k, v in content.items() if isinstance(k, str)} if isinstance(content, dict) else {}


def _classes(names: Any, path: Path) -> list[RawClass]:
    """Return classes by number, which is the key of the boxes."""
    entries = list(enumerate(names)) if isinstance(names, list) else []
    if isinstance(names, dict) and all(isinstance(k, str) and k.isdecimal() and len(k) < 9 for k in names):
        entries = sorted(((int(key), name) for key, name in names.items()), key=lambda entry: entry[0])
    if not entries or not all(is_text(name) for _, name in entries):
        raise DataError(
            f"{path}: 'names' is not usable. Expected a list of names, or a mapping such as {{0: cat, 1: "
            f"dog}}."
        )
    return [RawClass(str(number), name, number) for number, name in entries]


def _resolve(value: Any, base: Any, folder: Path) -> Path | None:
    """Return the folder or list of files that a path of a `data.yaml` means, inside its folder."""
    if not isinstance(value, str) or "\0" in value or not value.strip():
        return None
    text = value.strip().replace("\\", "/")
    below = os.path.normpath(text)
    while below.startswith("../"):
        below = below[3:]
    bases = [folder / base.strip(), folder] if isinstance(base, str) and "\0" not in base else [folder]
    candidates = [b / text for b in bases] + [folder / below] * (not below.startswith("/"))
    for candidate in candidates:
        is_list = candidate.suffix == ".txt" and candidate.is_file()
        if inside(candidate, folder) and (is_list or candidate.is_dir()):
            return Path(os.path.normpath(candidate))
    return None


def _sources_of_folders(root: Path) -> dict[str, Source]:
    """Find `images/` and `labels/`, with or without folders for splits in or around them."""
    folders = []
    if (root / "labels").is_dir() and (root / "images").is_dir():
        folders = split_folders(root / "images") or [("train", root / "images")]
    for split, folder in split_folders(root):
        if (folder / "images").is_dir() and (folder / "labels").is_dir():
            folders.append((split, folder / "images"))
    if not folders and (root / "classes.txt").is_file() and len(list(root.glob("*.txt"))) > 1:
        folders = [("train", root)]
    if not folders:
        return {}
    beside = ("", "labels", "labels/train", "train", "train/labels")
    names = find_name_list(*(root / folder for folder in beside))
    if not names:
        raise DataError(
            f"{root} has YOLO labels but no class names, which the model reads. Add a classes.txt with one "
            "name a line, in the order of the class numbers, or a data.yaml."
        )
    classes = [RawClass(str(number), name, number) for number, name in enumerate(names)]
    read = partial(_read_split, root=root, classes=classes, key_points=False)
    entries: dict[str, list[Path]] = {}
    for split, folder in folders:
        entries.setdefault(split, []).append(folder)
    return {split: Source(its[0], [root], partial(read, entries=its)) for split, its in entries.items()}


def _read_split(
    file: Path, *, entries: Sequence[Path], root: Path, classes: list[RawClass], key_points: bool
) -> RawData:
    """Read the label files of folders of images and of lists of images."""
    raw = RawData(file, "cxcywh", classes=classes, states_size=False)
    is_file = listed_folders()
    for entry in entries:
        for names in _listed(entry, root) if entry.is_file() else _images_in(entry, root, raw.problems):
            image = RawImage(names, entry.name)
            label = _label_file([root / name for name in names], root, is_file)
            if label is None:
                raw.problems.add("label-file-missing", names[0])
            else:
                image.boxes = _rows(label, key_points, raw.problems)
            raw.images.append(image)
    return raw


def _images_in(folder: Path, root: Path, problems: Collector) -> list[tuple[str, ...]]:
    """Return the images in a folder and below, relative to the root, sorted by path."""
    inside = [
        path for path in sorted(folder.rglob("*")) if all(map(is_visible, path.relative_to(folder).parts))
    ]
    for path in inside:
        if has_suffix(path.name, UNREAD_SUFFIXES):
            problems.add("image-format-unread", path.name)
    return [(os.path.relpath(path, root),) for path in inside if has_suffix(path.name, IMAGE_SUFFIXES)]


def _listed(path: Path, root: Path) -> list[tuple[str, ...]]:
    """Return the images of a list of files: relative to the list or to the root, or absolute."""
    beside = os.path.relpath(path.parent, root)
    found: list[tuple[str, ...]] = []
    for line in read_text(path).splitlines():
        name = line.strip().replace("\\", "/").removeprefix("./")
        if is_text(name) and os.path.basename(name):
            found.append((name,) if beside == "." or name.startswith("/") else (f"{beside}/{name}", name))
    return found


def _label_file(images: Sequence[Path], root: Path, is_file: Callable[[Path], bool]) -> Path | None:
    """Return the label file of an image: in `labels/` for `images/`, or beside it."""
    for image in images:
        beside = image.with_suffix(".txt")
        for candidate in (Path(_IMAGES.sub(r"\1labels/", beside.as_posix())), beside):
            if inside(candidate, root) and is_file(candidate):
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
    """Write the label file of one image, without crowd boxes: YOLO cannot express them."""
    height, width = sample.size_hw
    kept = ~sample.crowd
    lines = []
    for (x0, y0, x1, y1), c in zip(
        sample.boxes_xyxy[kept].tolist(), sample.class_ids[kept].tolist(), strict=True
    ):
        box = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
        lines.append(f"{c} {' '.join(f'{number:.10g}' for number in box)}\n")
    path.write_text("".join(lines), encoding="utf-8")


def write_yolo_yaml(splits: dict[str, Dataset], path: Path) -> None:
    """Write `data.yaml`; the images of a split are in SPLIT/images beside it."""
    names = next(iter(splits.values())).class_names
    content: dict[str, Any] = {("val" if split == "valid" else split): f"{split}/images" for split in splits}
    content |= {"nc": len(names), "names": dict(enumerate(names))}
    plain = all(map(str.isprintable, names))  # PyYAML reads some other characters back as spaces
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=plain), encoding="utf-8")
