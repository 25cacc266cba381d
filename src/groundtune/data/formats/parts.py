"""Splits that file names do not state: parts of one set, and lists of images.

- Several annotation files of one split are parts of it if they name different images. Otherwise
  they are versions, and the user has to choose.
- `train.txt`, `val.txt` and `test.txt`, beside the images or in `ImageSets/`, divide images that
  are annotated as one set, whatever the format. Their lines are names or paths, and may have
  more words.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from posixpath import basename, dirname, splitext
from typing import Any

from groundtune.data.formats.records import RawClass, RawData, RawImage, Source
from groundtune.data.formats.tree import AmbiguousNameError, Tree
from groundtune.data.formats.words import SPLITS, fold, split_of
from groundtune.data.problems import READING, Collector
from groundtune.errors import DataError

_MAX_LIST = 2**28  # bytes


def joined(tree: Tree, parts: Sequence[Source], refusal: str) -> Source:
    """Return a source of the images of several annotation files.

    Reading it raises a `DataError` with the refusal if an image is in two of the files, or if a
    file names no image that exists.
    """

    def read(_: Any) -> RawData:
        raws = [part.read(part.file) for part in parts]
        first, seen = raws[0], set[str]()
        for part, raw in zip(parts, raws, strict=True):
            files = [_resolve(tree, image, part.image_dirs) for image in raw.images]
            names = [file or image.file_names[0] for file, image in zip(files, raw.images, strict=True)]
            other_form = raw.form != first.form or raw.states_size != first.states_size or raw.lvis
            if other_form or not seen.isdisjoint(names) or not any(files):
                raise DataError(refusal)
            seen.update(names)
        return _join(raws)

    return Source(parts[0].file, ["", *(folder for part in parts for folder in part.image_dirs)], read)


def _resolve(tree: Tree, image: RawImage, folders: Sequence[str]) -> str | None:
    """Put the file that an image means first among its names, and return it; None without one."""
    match = None
    with suppress(AmbiguousNameError):
        match = tree.find(image.file_names, folders)
    if match is None:
        return None
    if not match.loosely:
        image.file_names = match.file, *image.file_names
    return match.file


def _join(raws: Sequence[RawData]) -> RawData:
    """Return the images of several files, with classes by name and unique ids."""
    joined = replace(raws[0], images=[], classes=[], problems=Collector(READING))
    numbers: dict[str, int] = {}
    ids: set[int | None] = set()
    for raw in raws:
        name_of: dict[Any, str] = {entry.key: entry.name for entry in raw.classes}
        for entry in raw.classes:
            numbers.setdefault(entry.name, entry.number)
        for image in raw.images:
            image.where = f"{raw.file.name} {image.where}"
            for index, box in enumerate(image.boxes if image.caption is None else ()):
                label = name_of.get(box.label, f"{box.label} of {raw.file.name}")
                image.boxes[index] = box._replace(label=label)
            image.image_id = None if image.image_id in ids else image.image_id
            ids.add(image.image_id)
        joined.images += raw.images
        joined.problems.extend(raw.problems)
        joined.problems.add("annotation-files-joined", raw.file.name)
    is_unique = len({*numbers.values()}) == len(numbers)
    joined.classes = [
        RawClass(name, name, number if is_unique else index)
        for index, (name, number) in enumerate(numbers.items(), start=1)
    ]
    return joined


def divided(tree: Tree, split: str, raw: RawData) -> tuple[dict[str, RawData], dict[str, str]]:
    """Return the images of an undivided set by the split of the list that names them.

    Without lists of two splits, or of one if `split` is "", the images stay together. Also returns
    the reasons why splits are refused, whose lists name no annotated image.
    """
    images = {fold(splitext(basename(image.file_names[0]))[0]): image for image in raw.images}
    groups: dict[str, dict[str, RawImage]] = {}
    refused: dict[str, str] = {}
    missing = []
    for file, lines in _lists(tree, images).items():
        split_name, found = split_of(basename(file)) or "", set()
        for line in lines:
            names = [fold(basename(text.strip())) for text in (line, line.split()[0])]
            stems = [each for name in names for each in (name, splitext(name)[0])]  # "a.v1" or "a.jpg"
            stem = next((each for each in stems if each in images), None)
            if stem is None:
                missing.append(line.strip())
            else:
                found.add(stem)
        if found:
            groups.setdefault(split_name, {}).update({stem: images[stem] for stem in images if stem in found})
        elif lines:
            missing = missing[: -len(lines)]
            refused[split_name] = f"{tree.root / file} names {len(lines)} images, and none is annotated."
    if len(images) < len(raw.images) or len(groups) < (2 if split else 1):
        return {split: raw}, {}
    for line in missing:
        raw.problems.add("annotation-missing", line)
    for stem in images:
        if not any(stem in group for group in groups.values()):
            raw.problems.add("image-without-split", images[stem].file_names[0])
    first = min(groups, key=SPLITS.index)
    splits = {}
    for name, group in groups.items():
        own = [replace(image) for image in group.values()]  # an image may be in two lists
        problems = raw.problems if name == first else Collector(READING)
        splits[name] = replace(raw, images=own, problems=problems)
    return splits, {name: reason for name, reason in refused.items() if name not in splits}


def _lists(tree: Tree, stems: Collection[str]) -> dict[str, list[str]]:
    """Return the lines of lists of splits, by file; images called "train.jpg" have no list."""
    files = []
    for file in tree.suffixed(".txt"):
        name = splitext(basename(file))[0].lower()
        own = name not in stems or "imagesets" in file.lower()
        if "_" not in name and own and split_of(basename(file)):  # not "cat_train.txt"
            files.append(file)
    main = [file for file in files if basename(dirname(file)).lower() == "main"]  # not "Segmentation"
    texts = {file: tree.head(file, _MAX_LIST).replace("\\", "/") for file in main or files}
    lists = {file: [*filter(str.strip, text.splitlines())] for file, text in texts.items()}
    if any(lines and basename(file).lower() == "train.txt" for file, lines in lists.items()):
        lists = {file: lines for file, lines in lists.items() if basename(file).lower() != "trainval.txt"}
    return lists
