"""Detect the format and layout of a data set, and read it. The layouts are tried in this order:

1. A folder per split with one annotation file, and the images beside it or in `images/`: exports of
   Roboflow as COCO (`_annotations.coco.json`), CSV (`_annotations.csv`) or VOC (XML), and ODVG.
2. A file per split, in `annotations/` or in the folder itself, such as `instances_train2017.json`
   or `val.csv`; the images are in `train2017/` or `images/train2017/`. COCO is published like this.
3. YOLO: `data.yaml`, or `images/` and `labels/` with a file of names.
4. Pascal VOC: `Annotations/`, `ImageSets/`, `JPEGImages/`; or XML files beside images.
5. One annotation file, given itself or alone in its folder.

The content of a JSON file decides between COCO, LVIS and `tokens_positive`.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from groundtune.data.formats.assemble import assemble
from groundtune.data.formats.coco import raw_coco
from groundtune.data.formats.csv import raw_csv
from groundtune.data.formats.files import SPLIT_NAMES, split_folders
from groundtune.data.formats.odvg import is_tokens_positive, odvg_source, raw_tokens_positive
from groundtune.data.formats.records import RawData, Source
from groundtune.data.formats.voc import find_voc, xml_source
from groundtune.data.formats.yolo import find_yolo, sources_of_yaml
from groundtune.data.sample import Dataset, join_examples, unify_classes
from groundtune.data.split import hold_out
from groundtune.errors import DataError
from groundtune.files import read_json

_SPLITS = ("train", "valid", "test")
_SUFFIXES = (".json", ".jsonl", ".csv")  # the preferred ones first
_NO_ANNOTATIONS = {"label_map.json", "classes.json", "package.json", "metadata.jsonl"}
_SPLIT_WORD = re.compile(
    r"(?:instances_|_annotations_|lvis_v\d_|annotations?_)?(train|training|val|valid|validation|test)(\d{4})?(?:_annotations?)?",
    re.IGNORECASE,
)
_LAYOUTS = (
    "train/_annotations.coco.json, .jsonl, .csv or .xml files (and valid/, test/); "
    "annotations/instances_train*.json with train*/ or images/; a YOLO data.yaml, or images/ + labels/ + "
    "classes.txt; a VOC Annotations/ with JPEGImages/; or one .json, .jsonl or .csv file with the images "
    "beside it or in images/"
)
_FILES = "a COCO, LVIS or tokens_positive .json file, an ODVG .jsonl file, a .csv file, or a YOLO data.yaml"


def load_splits(path: Path, *, keep_going: bool = False) -> dict[str, Dataset]:
    """Read a data set like `read_splits`; hold out "valid" from "train" if it is missing."""
    splits = read_splits(path, keep_going=keep_going)
    if "train" in splits and "valid" not in splits:
        splits = hold_out(splits["train"], seed=0) | splits
    return splits


def read_splits(path: Path, *, keep_going: bool = False) -> dict[str, Dataset]:
    """Read the data set in a folder, or in one annotation file.

    Args:
        path: folder in one of the layouts above, or annotation file.
        keep_going: skip images and files that cannot be used, with a finding of severity "error".

    Returns:
        The existing splits of "train", "valid" and "test", with one class list, mapped by name. A
        single file becomes "train".

    Raises:
        DataError: no layout fits, a split is ambiguous, or a file is not usable.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"The data {path} does not exist. Expected a folder with annotated images, or {_FILES}."
        )
    try:
        root, sources = _find(path)
        splits = {
            split: assemble(source.read(source.file), split, root, source.image_dirs, keep_going)
            for split, source in sorted(sources.items(), key=lambda item: _SPLITS.index(item[0]))
        }
    except OSError as error:
        raise DataError(f"Cannot read {error.filename or path}: {error.strerror or error}.") from error
    unify_classes(list(splits.values()))
    return splits


def _find(path: Path) -> tuple[Path, dict[str, Source]]:
    """Return the data folder and the annotations of each split."""
    if path.is_file():
        if path.suffix.lower() in (".yaml", ".yml"):
            return path.parent, sources_of_yaml(path)
        if path.suffix.lower() not in _SUFFIXES:
            raise DataError(f"{path} is not a data set. Expected a folder, or {_FILES}.")
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        return root, {"train": _source(path, root)}
    for layout in (_split_folders, _split_files, find_yolo, find_voc, _single_file):
        sources = layout(path)
        if sources:
            return path, sources
    entries = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir())
    raise DataError(
        f"No data set in {path}. Expected {_LAYOUTS}. Found: "
        f"{join_examples(entries, 8) or 'an empty folder'}."
    )


def _split_folders(root: Path) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for split, folder in split_folders(root):
        image_dirs = [place for place in (folder, folder / "images", folder / "data", root) if place.is_dir()]
        candidates = (_of_roboflow(_files(folder, suffix)) for suffix in _SUFFIXES)
        file = next((files[0] for files in candidates if len(files) == 1), None)
        if file:
            _add(sources, split, _source(file, root, image_dirs))
        elif xml_paths := sorted(folder.glob("*.xml")):
            _add(sources, split, xml_source(folder, xml_paths, folder))
    return sources


def _of_roboflow(files: list[Path]) -> list[Path]:
    """Return only the annotation file of Roboflow if it is among the files."""
    return [file for file in files if file.name in ("_annotations.coco.json", "_annotations.csv")] or files


def _split_files(root: Path) -> dict[str, Source]:
    for suffix in _SUFFIXES:
        for folder in (root / "annotations", root):
            sources: dict[str, Source] = {}
            for path in _files(folder, suffix):
                if match := _SPLIT_WORD.fullmatch(path.stem):
                    _add(sources, SPLIT_NAMES[match[1].lower()], _source(path, root))
            if sources:
                return sources
    return {}


def _single_file(root: Path) -> dict[str, Source]:
    for suffix in _SUFFIXES:
        files = [*_files(root, suffix), *_files(root / "annotations", suffix)]
        if len(files) > 1:
            names = join_examples([file.name for file in files])
            raise DataError(
                f"{root} has {len(files)} {suffix[1:].upper()} files ({names}) and none is named after a "
                "split. Give the path of one of them."
            )
        if files:
            return {"train": _source(files[0], root)}
    return {}


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(file for file in folder.glob(f"*{suffix}") if file.name not in _NO_ANNOTATIONS)


def _add(sources: dict[str, Source], split: str, source: Source) -> None:
    if split in sources:
        raise DataError(
            f"Two annotation files for the split {split!r}: {sources[split].file} and {source.file}. "
            "Remove one, or give the path of one."
        )
    sources[split] = source


def _source(path: Path, root: Path, image_dirs: Sequence[Path] | None = None) -> Source:
    """Return the split of one annotation file; by default, search images in the usual folders."""
    if image_dirs is None:
        stem = re.sub(r"^(instances|_annotations|lvis_v\d)_", "", path.stem)
        names = (stem, re.sub(r"\d{4}$", "", stem))
        folders = [folder / name for name in names for folder in (root, root / "images")]
        folders += [root / "images", root / "data", path.parent, root]
        image_dirs = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
    if path.suffix.lower() == ".jsonl":
        return odvg_source(path, image_dirs, root)
    return Source(path, image_dirs, raw_csv if path.suffix.lower() == ".csv" else _raw_json)


def _raw_json(path: Path) -> RawData:
    content = read_json(path)
    return raw_tokens_positive(content, path) if is_tokens_positive(content) else raw_coco(content, path)
