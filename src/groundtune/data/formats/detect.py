"""Which files of a folder are a data set: the layouts are looked for one after the other.

1. A folder per split with one annotation file and the images beside it or in `images/`: what Roboflow exports as COCO
   (`_annotations.coco.json`), CSV (`_annotations.csv`) or VOC (XML files), and ODVG.
2. A file per split, in `annotations/` or in the folder itself: `instances_train2017.json`, `train.jsonl`, `val.csv`, with the
   images in `train2017/` or `images/train2017/`: what COCO publishes.
3. YOLO: `data.yaml`, or `images/` and `labels/` with a names file.
4. Pascal VOC: `Annotations/`, `ImageSets/`, `JPEGImages/`; or XML files beside images.
5. One annotation file, given itself or alone in its folder.

A JSON file is taken for COCO, LVIS or `tokens_positive` by what it holds. Training needs images to be judged by: where no
validation split is found, one is held out of "train", stratified and the same in each run (`data.split`).
"""

import re
from collections.abc import Sequence
from pathlib import Path

from groundtune.data.formats.assemble import assemble
from groundtune.data.formats.coco import is_grounding, raw_coco
from groundtune.data.formats.csv import raw_csv
from groundtune.data.formats.files import SPLIT_NAMES, read_json, split_folders
from groundtune.data.formats.odvg import odvg_source, raw_tokens_positive
from groundtune.data.formats.records import RawData, Source
from groundtune.data.formats.voc import find_voc, xml_source
from groundtune.data.formats.yolo import find_yolo, sources_of_yaml
from groundtune.data.sample import Dataset, listed, unify_classes
from groundtune.data.split import hold_out
from groundtune.errors import DataError

_SUFFIXES = (".json", ".jsonl", ".csv")  # in the order in which they are preferred
_NO_ANNOTATIONS = {"label_map.json", "classes.json", "package.json", "metadata.jsonl"}
_SPLIT_WORD = re.compile(
    r"(?:instances_|_annotations_|lvis_v\d_|annotations?_)?(train|training|val|valid|validation|test)(\d{4})?(?:_annotations?)?",
    re.IGNORECASE,
)
_LOOKED_FOR = (
    "train/_annotations.coco.json, .jsonl, .csv or .xml files (and valid/, test/); annotations/instances_train*.json with "
    "train*/ or images/; a YOLO data.yaml, or images/ + labels/ + classes.txt; a VOC Annotations/ with JPEGImages/; or one "
    ".json, .jsonl or .csv file with the images beside it or in images/"
)
_FILES = "a COCO, LVIS or tokens_positive .json file, an ODVG .jsonl file, a .csv file, or a YOLO data.yaml"


def load_splits(path: Path, *, keep_going: bool = False) -> dict[str, Dataset]:
    """Read a data set as `read_splits`, and hold out "valid" of "train" where there is none (but of a single image)."""
    splits = read_splits(path, keep_going=keep_going)
    if "train" in splits and "valid" not in splits:
        splits = hold_out(splits["train"]) | splits
    return splits


def read_splits(path: Path, *, keep_going: bool = False) -> dict[str, Dataset]:
    """Read the data set in a folder, or in one annotation file.

    Args:
        path: a folder in one of the layouts above, or an annotation file.
        keep_going: leave out images and files that cannot be used, with a finding of severity "error"; for `check`.

    Returns:
        The splits that exist under "train", "valid" and "test", with one class list, mapped by name. One file alone
        becomes "train".

    Raises:
        DataError: there is no such folder, no layout fits (what was looked for and what was found is said), two files
            could be the same split, or a file is not usable.
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
            for split, source in sorted(
                sources.items(), key=lambda item: ("train", "valid", "test").index(item[0])
            )
        }
    except OSError as error:
        raise DataError(f"Cannot read {error.filename or path}: {error.strerror or error}.") from error
    unify_classes(list(splits.values()))
    return splits


def _find(path: Path) -> tuple[Path, dict[str, Source]]:
    """Give the data folder and the annotations of each split."""
    if path.is_file():
        if path.suffix.lower() in (".yaml", ".yml"):
            return path.parent, sources_of_yaml(path)
        if path.suffix.lower() not in _SUFFIXES:
            raise DataError(f"{path} is not a data set. Expected a folder, or {_FILES}.")
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        return root, {"train": _source(path, _image_folders(root, path), root)}
    for layout in (_split_folders, _split_files, find_yolo, find_voc, _single_file):
        sources = layout(path)
        if sources:
            return path, sources
    found = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir())
    raise DataError(
        f"No data set in {path}. Looked for {_LOOKED_FOR}. Found: {listed(found, 8) or 'an empty folder'}."
    )


def _source(path: Path, image_dirs: Sequence[Path], root: Path) -> Source:
    """A split of one annotation file."""
    if path.suffix.lower() == ".jsonl":
        return odvg_source(path, image_dirs, root)
    return Source(path, image_dirs, raw_csv if path.suffix.lower() == ".csv" else _raw_json)


def _raw_json(path: Path) -> RawData:
    content = read_json(path)
    return raw_tokens_positive(content, path) if is_grounding(content) else raw_coco(content, path)


def _split_folders(root: Path) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    for split, folder in split_folders(root):
        image_dirs = [place for place in (folder, folder / "images", folder / "data", root) if place.is_dir()]
        files = next((found for suffix in _SUFFIXES if len(found := _preferred(folder, suffix)) == 1), [])
        if files:
            _add(sources, split, _source(files[0], image_dirs, root))
        elif xml_paths := sorted(folder.glob("*.xml")):
            _add(sources, split, xml_source(folder, xml_paths, folder))
    return sources


def _preferred(folder: Path, suffix: str) -> list[Path]:
    """The annotation files of a kind; Roboflow's alone where it is among them."""
    files = _files(folder, suffix)
    return [file for file in files if file.name in ("_annotations.coco.json", "_annotations.csv")] or files


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(file for file in folder.glob(f"*{suffix}") if file.name not in _NO_ANNOTATIONS)


def _split_files(root: Path) -> dict[str, Source]:
    for suffix in _SUFFIXES:
        for folder in (root / "annotations", root):
            sources: dict[str, Source] = {}
            for path in _files(folder, suffix):
                match = _SPLIT_WORD.fullmatch(path.stem)
                if match:
                    _add(
                        sources,
                        SPLIT_NAMES[match[1].lower()],
                        _source(path, _image_folders(root, path), root),
                    )
            if sources:
                return sources
    return {}


def _single_file(root: Path) -> dict[str, Source]:
    for suffix in _SUFFIXES:
        files = [file for folder in (root, root / "annotations") for file in _files(folder, suffix)]
        if len(files) > 1:
            raise DataError(
                f"{root} has {len(files)} {suffix[1:].upper()} files ({listed([file.name for file in files])}) and none is "
                "named after a split. Give the path of the one to read."
            )
        if files:
            return {"train": _source(files[0], _image_folders(root, files[0]), root)}
    return {}


def _image_folders(root: Path, path: Path) -> list[Path]:
    """Where the images of a file may be: in folders named after it, in `images/`, beside it, in the root."""
    stem = re.sub(r"^(instances|_annotations|lvis_v\d)_", "", path.stem)
    words = [stem, re.sub(r"\d{4}$", "", stem)]
    named = [folder / word for word in words for folder in (root, root / "images")]
    folders = dict.fromkeys([*named, root / "images", root / "data", path.parent, root])
    return [folder for folder in folders if folder.is_dir()]


def _add(sources: dict[str, Source], split: str, source: Source) -> None:
    if split in sources:
        raise DataError(
            f"Two annotation files for the split {split!r}: {sources[split].file} and {source.file}. "
            "Keep one, or give the path of the one to read."
        )
    sources[split] = source
