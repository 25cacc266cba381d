"""YOLO: one text file per image, a row `class cx cy w h` per box, normalized by the image's size.

The data set is declared by a `data.yaml` (Ultralytics, Roboflow) or an `obj.data` (Darknet, CVAT),
or it is text files of numbers beside images, or in `labels/` for `images/`, with a file of names.

- Names are a list or a mapping `{0: cat}`, read as text, so that `no` and `007` are not changed.
- Splits are folders or lists of files (.txt). Paths of other machines are resolved by their ends.
- Rows of more than five numbers are outlines, which become their bounding boxes; or key points
  behind a box, with `kpt_shape` or if all rows can be read so. A sixth number alone is a score.
- An image without a label file is an image without objects.

Sizes are not stated: they are those of the images as viewers show them (EXIF), as in Ultralytics.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from posixpath import basename, dirname, splitext
from typing import Any

import yaml

from groundtune.data.formats.files import find_name_list, is_text, truncated_repr
from groundtune.data.formats.records import Evidence, RawBox, RawClass, RawData, RawImage, Source
from groundtune.data.formats.tree import AmbiguousNameError, Tree, join
from groundtune.data.formats.words import folder_split, pair_key, split_of
from groundtune.data.formats.yolo_rows import all_key_points, box_of, read_rows
from groundtune.data.images import IMAGE_SUFFIXES, has_suffix
from groundtune.data.sample import Dataset, Sample
from groundtune.errors import DataError
from groundtune.files import parse_yaml, read_text

_MAX_YAML = 2**20  # bytes; a file of 10,000 names has a fifth of it
_PROBED = 200  # label files
_ROW = re.compile(r"\s*-?\d+(\.0*)?(\s+-?[\d.]+(e-?\d+)?){4,}\s*$", re.IGNORECASE)


def recognize(tree: Tree) -> Evidence | None:
    """Recognize a data.yaml or obj.data, or label files with names or without."""
    declared = _declaring_file(tree)
    if declared is not None:
        return _declared(tree, *declared)
    if tree.only is not None:
        return None
    return _of_folders(tree)


def _declaring_file(tree: Tree) -> tuple[str, dict[str, Any]] | None:
    """Return the file with names and splits, the likeliest first, and its content."""
    files = sorted(
        tree.declared(".yaml", ".yml", ".data"),
        key=lambda file: (file.count("/"), splitext(basename(file))[0] not in ("data", "dataset"), file),
    )
    for file in files:
        try:
            content = _read_declaration(tree.root / file)
        except DataError:
            if splitext(basename(file))[0] in ("data", "dataset") or file == tree.only:
                raise
            continue  # a YAML file of something else
        if file == tree.only or ("names" in content and any(_split_key(key) for key in content)):
            return file, content
    return None


def _split_key(key: str) -> str | None:
    """Return the split of a key such as "train", "Validation" or "test_set"."""
    return split_of(key) if key.lower() not in ("names", "nc", "path") else None


def _read_declaration(path: Path) -> dict[str, Any]:
    """Read the mapping of a YAML file or of an obj.data, all values as text; {} for others."""
    if path.stat().st_size > _MAX_YAML:
        raise DataError(f"{path} has over 1 MB. Expected a data.yaml with the names and paths of a data set.")
    text = read_text(path)
    if path.suffix == ".data":
        pairs = (line.partition("=")[::2] for line in text.splitlines() if "=" in line)
        return {key.strip(): value.strip() for key, value in pairs}
    try:
        content = parse_yaml(text, yaml.BaseLoader)
    except ValueError as error:
        raise DataError(
            f"{path} is not YAML{error}. Export the data set again, or correct the file."
        ) from error
    return {k: v for k, v in content.items() if isinstance(k, str)} if isinstance(content, dict) else {}


def _declared(tree: Tree, file: str, content: Mapping[str, Any]) -> Evidence:
    """Return the splits of a data.yaml or obj.data; those that do not exist are refused."""
    classes = numbered_classes(_names(tree, file, content), tree.root / file)
    key_points = "kpt_shape" in content
    sources: dict[str, Source] = {}
    refused: dict[str, str] = {}
    for key, value in content.items():
        split = _split_key(key)
        if split is None or split in sources or not value:
            continue
        parts = value if isinstance(value, list) else [value]
        entries = [(part, _resolve(tree, part, dirname(file), content)) for part in parts]
        if any(entry is not None for _, entry in entries):
            read = partial(_read_entries, tree=tree, entries=entries, classes=classes, key_points=key_points)
            sources[split] = Source(tree.root / file, [*dict.fromkeys((dirname(file), ""))], read)
            refused.pop(split, None)
        else:
            refused[split] = (
                f"{tree.root / file} names {split} {truncated_repr(parts[0])}, which "
                f"does not exist. Expected a folder of images or a list of files (.txt) in {tree.root}."
            )
    if not sources and not refused:
        folders = _of_folders(tree)
        if folders is None or not folders.sources:
            raise DataError(
                f"{tree.root / file} names no split. Expected keys such as train and val, with folders of "
                "images or lists of files."
            )
        return folders
    return Evidence("yolo", 3, sources, refused, file)


def _names(tree: Tree, file: str, content: Mapping[str, Any]) -> Any:
    """Return the names in a declaration, or those in the file that an obj.data names."""
    names = content.get("names")
    if isinstance(names, str):
        listed = [each for each in tree.suffixed(".names", ".txt") if basename(each) == basename(names)]
        return [line.strip() for line in read_text(tree.root / listed[0]).splitlines()] if listed else names
    return names


def numbered_classes(names: Any, path: Path) -> list[RawClass]:
    """Return classes by number, which is the key of the boxes. An empty line is not a class."""
    entries = list(enumerate(names)) if isinstance(names, list) else []
    if isinstance(names, dict) and all(isinstance(k, str) and k.isdecimal() and len(k) < 9 for k in names):
        entries = sorted(((int(key), name) for key, name in names.items()), key=lambda entry: entry[0])
    entries = [(number, name) for number, name in entries if name != ""]
    if not entries or not all(is_text(name) for _, name in entries):
        raise DataError(
            f"{path}: 'names' is not usable. Expected a list of names, or a mapping such as {{0: cat, 1: "
            f"dog}}."
        )
    return [RawClass(str(number), name, number) for number, name in entries]


def _resolve(tree: Tree, value: Any, folder: str, content: Mapping[str, Any]) -> str | None:
    """Return the folder, list of files or image that a path of a declaration means."""
    if not is_text(value) or "\0" in value or not value.strip():
        return None
    text = value.strip().replace("\\", "/")
    base = content.get("path")
    near = tree.find_folder(base, folder) if isinstance(base, str) and "\0" not in base else folder
    if text.endswith(".txt"):
        ends = [file for file in tree.suffixed(".txt") if basename(file) == basename(text)]
        exact = [file for file in (join(folder, text), join(near or "", text)) if file in ends]
        return next(iter(exact or ends), None)
    if has_suffix(basename(text), IMAGE_SUFFIXES):
        return next(filter(tree.is_file, (join(folder, text), join(near or "", text))), text)
    return tree.find_folder(text, folder if near is None else near)


def _of_folders(tree: Tree) -> Evidence | None:
    """Recognize label files by their rows and images; the images are those of the same folders."""
    labels = [file for file in tree.suffixed(".txt") if pair_key(file) in tree.pairs]
    rows = [file for file in labels[:_PROBED] if _ROW.match((tree.head(file, 200).splitlines() or [""])[0])]
    if not rows:
        return None
    tops = {_top(tree.pairs[pair_key(file)][0]) for file in labels}
    names = _listed_names(tree)
    if not names:
        reason = (
            f"{tree.root} has YOLO labels but no class names, which the model reads. Add a classes.txt with "
            "one name a line, in the order of the class numbers, or a data.yaml."
        )
        return Evidence("yolo", 1, {}, {"": reason}, rows[0])
    classes = [RawClass(str(number), name, number) for number, name in enumerate(names)]
    groups: dict[str, list[str]] = {}
    for image in tree.images:
        if tops & {"", *accumulate(dirname(image).split("/"), join)}:
            groups.setdefault(folder_split(dirname(image)) or "", []).append(image)
    read = partial(_read, tree=tree, classes=classes, key_points=False)
    sources = {
        split: Source(tree.root / dirname(images[0]), [""], partial(read, images=images))
        for split, images in groups.items()
    }
    return Evidence("yolo", 2, sources, example=rows[0])


def _top(image: str) -> str:
    """Return the folder of a split's images: up to the one called "images", or that of the file."""
    folder = dirname(image)
    match = re.match(r"(.*/)?(images|imgs?|data|jpegimages)(?=/|$)", folder, re.IGNORECASE)
    return match[0] if match else folder


def _listed_names(tree: Tree) -> list[str]:
    """Return the class names of a file of names, or of a data.yaml without splits."""
    folders = sorted(tree.folders, key=lambda folder: (folder.count("/"), folder))
    if names := find_name_list(tree, [folder for folder in folders if folder.count("/") < 2]):
        return names
    for file in tree.suffixed(".yaml", ".yml"):
        content = _read_declaration(tree.root / file)
        if "names" in content:
            return [entry.name for entry in numbered_classes(content["names"], tree.root / file)]
    return []


def _read_entries(
    file: Path,
    *,
    tree: Tree,
    entries: Sequence[tuple[Any, str | None]],
    classes: list[RawClass],
    key_points: bool,
) -> RawData:
    """Read the label files of images, folders and lists; None is one that does not exist."""
    images: list[str] = []
    for each in [each for _, each in entries if each is not None]:
        if each.endswith(".txt"):
            images += _listed(tree, read_text(tree.root / each).splitlines(), dirname(each))
        elif has_suffix(basename(each), IMAGE_SUFFIXES):
            images += _listed(tree, [each], dirname(file.relative_to(tree.root).as_posix()))
        else:
            images += [image for image in tree.images if not each or image.startswith(f"{each}/")]
    raw = _read(file, tree=tree, images=images, classes=classes, key_points=key_points)
    for lost in [stated for stated, each in entries if each is None]:
        raw.problems.add("path-missing", truncated_repr(lost))
    return raw


def _read(
    file: Path, *, tree: Tree, images: Sequence[str], classes: list[RawClass], key_points: bool
) -> RawData:
    """Read the label files of images."""
    raw = RawData(file, "cxcywh", classes=classes, states_size=False)
    texts = {pair_key(each): each for each in tree.suffixed(".txt")}
    rows: list[tuple[RawImage, str, int, list[float]]] = []
    for name in images:
        image = RawImage((name,), name)
        label = _label_file(tree, name, texts)
        if label is None:
            raw.problems.add("label-file-missing", name)
        else:
            rows += [(image, label, *row) for row in read_rows(tree.root / label, raw.problems)]
        raw.images.append(image)
    folders = {dirname(label) for _, label, *_ in rows}
    for each in sorted(texts.keys() - tree.pairs.keys()):
        if dirname(texts[each]) in folders and _ROW.match(tree.head(texts[each], 200).partition("\n")[0]):
            raw.problems.add("label-without-image", texts[each])
    only_outlines = not key_points and not all_key_points([numbers for *_, numbers in rows])
    for image, label, number, numbers in rows:
        where = f"{basename(label)} line {number}"
        box = box_of(numbers, only_outlines, where, raw.problems)
        if box is not None:
            key = str(int(numbers[0])) if numbers[0].is_integer() else str(numbers[0])
            image.boxes.append(RawBox(box, key, where))
    return raw


def _listed(tree: Tree, lines: Sequence[str], folder: str) -> list[str]:
    """Return the images of a list of files, resolved where that is possible."""
    found = []
    for line in lines:
        name = line.strip().replace("\\", "/")
        if not is_text(name) or not basename(name):
            continue
        try:
            match = tree.find([name], [folder, ""])
        except AmbiguousNameError:
            match = None  # reported when the images are searched
        found.append(match.file if match else name)
    return found


def _label_file(tree: Tree, image: str, texts: Mapping[tuple[str, ...], str]) -> str | None:
    """Return the label file of an image: in `labels/` for `images/`, or beside it."""
    beside = f"{splitext(image)[0]}.txt"
    in_labels = re.sub(r"^((?:.*/)?)images/", r"\1labels/", beside)
    return next((each for each in (in_labels, beside) if tree.is_file(each)), texts.get(pair_key(image)))


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
