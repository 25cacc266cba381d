"""Which files of a folder are a data set: the layouts are looked for one after the other.

Understood so far, all COCO JSON:

1. `train/_annotations.coco.json` with the pictures beside it, the same for `valid` (or `val`, `validation`) and `test`:
   what Roboflow exports. Any single JSON file in such a folder will do.
2. `annotations/instances_train2017.json` (or `train.json`, also in the folder itself) with the pictures in
   `train2017/` or `images/train2017/`: what COCO publishes.
3. One JSON file, given itself or alone in its folder, with the pictures beside it or in `images/`.

Training needs pictures to be judged by. Where only one split is found, every fifth picture of a seeded shuffle is held
out as "valid"; the choice depends on the file names alone, so that each run judges by the same pictures, and a message
says it. (A stratified choice, and other formats, are for later.)
"""

import random
import re
from dataclasses import dataclass, replace
from pathlib import Path

from groundtune.data.formats.coco import read_coco
from groundtune.data.sample import Dataset, listed, unify_classes
from groundtune.errors import DataError

_SPLIT_NAMES = {"train": "train", "training": "train", "valid": "valid", "val": "valid", "validation": "valid"}
_SPLIT_NAMES |= {"test": "test", "testing": "test"}
_HELD_OUT = 0.2
_SPLIT_WORD = re.compile(
    r"(?:instances_|_annotations_)?(train|training|val|valid|validation|test)(\d{4})?", re.IGNORECASE
)
_LOOKED_FOR = (
    "train/_annotations.coco.json (and valid/, test/), annotations/instances_train*.json with train*/ or images/, "
    "or one .json file with the pictures beside it or in images/"
)


@dataclass(frozen=True)
class _Source:
    """One annotation file and the folders its pictures may be in, the likeliest first."""

    json_path: Path
    image_dirs: tuple[Path, ...]


def load_splits(path: Path) -> dict[str, Dataset]:
    """Read the data set in a folder, or in one annotation file.

    Args:
        path: a folder in one of the layouts above, or a COCO JSON file.

    Returns:
        The splits that exist under "train", "valid" and "test", with one class list, mapped by name. One file alone
        becomes "train" and a held-out "valid" (of a single picture: only "train").

    Raises:
        DataError: there is no such folder, no layout fits (what was looked for and what was found is said), two files
            could be the same split, or a file is not usable.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"The data {path} does not exist. Expected a folder with annotated pictures, or a COCO .json file."
        )
    root, sources = _find(path)
    splits: dict[str, Dataset] = {}
    for split in ("train", "valid", "test"):
        if split in sources:
            source = sources[split]
            splits[split] = read_coco(
                source.json_path, source.image_dirs[0], split, root=root, other_dirs=source.image_dirs[1:]
            )
    unify_classes(list(splits.values()))
    if "train" in splits and "valid" not in splits:
        splits = hold_out(splits["train"]) | splits
    return splits


def hold_out(dataset: Dataset, share: float = _HELD_OUT, seed: int = 0) -> dict[str, Dataset]:
    """Split one data set into "train" and "valid", in place of a validation split that does not exist.

    Args:
        dataset: the pictures; shrinks to those that stay for training.
        share: about this share of the pictures goes to "valid", at least one.
        seed: of the choice, which depends on the file names and not on their order in the file.

    Returns:
        Both splits. A single picture cannot be split: only "train".
    """
    order = sorted(range(len(dataset.samples)), key=lambda i: str(dataset.samples[i].image_path))
    random.Random(seed).shuffle(order)
    if len(order) < 2:
        dataset.messages.append(f"{dataset.name}: no validation pictures, and a single picture cannot be split.")
        return {"train": dataset}
    held = set(order[: max(1, round(share * len(order)))])
    message = (
        f"no validation split found: {len(held)} of {len(order)} pictures were held out as 'valid' (seed {seed}), "
        f"{len(order) - len(held)} are left for training."
    )
    valid = replace(
        dataset,
        name="valid",
        class_names=list(dataset.class_names),
        category_ids=list(dataset.category_ids),
        samples=[sample for i, sample in enumerate(dataset.samples) if i in held],
        messages=[],
    )
    dataset.samples = [sample for i, sample in enumerate(dataset.samples) if i not in held]
    dataset.messages.append(message)
    return {"train": dataset, "valid": valid}


def _find(path: Path) -> tuple[Path, dict[str, _Source]]:
    """Give the data folder and the annotation file of each split."""
    if path.is_file():
        if path.suffix.lower() != ".json":
            raise DataError(f"{path} is not a data set. Expected a folder, or a COCO .json file.")
        root = path.parent.parent if path.parent.name == "annotations" else path.parent
        return root, {"train": _Source(path, _picture_folders(root, path))}
    for layout in (_split_folders, _split_files, _single_file):
        sources = layout(path)
        if sources:
            return path, sources
    found = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in path.iterdir())
    raise DataError(f"No data set in {path}. Looked for {_LOOKED_FOR}. Found: {listed(found, 8) or 'an empty folder'}.")


def _split_folders(root: Path) -> dict[str, _Source]:
    sources: dict[str, _Source] = {}
    for folder in sorted(root.iterdir()):
        split = _SPLIT_NAMES.get(folder.name.lower())
        if split is None or not folder.is_dir():
            continue
        files = sorted(folder.glob("*.json"))
        roboflow = folder / "_annotations.coco.json"
        if roboflow in files or len(files) == 1:
            json_path = roboflow if roboflow in files else files[0]
            _add(sources, split, _Source(json_path, (folder, folder / "images", folder / "data", root)))
    return sources


def _split_files(root: Path) -> dict[str, _Source]:
    for folder in (root / "annotations", root):
        sources: dict[str, _Source] = {}
        for json_path in sorted(folder.glob("*.json")):
            match = _SPLIT_WORD.fullmatch(json_path.stem)
            if match:
                _add(sources, _SPLIT_NAMES[match[1].lower()], _Source(json_path, _picture_folders(root, json_path)))
        if sources:
            return sources
    return {}


def _single_file(root: Path) -> dict[str, _Source]:
    files = [file for folder in (root, root / "annotations") for file in sorted(folder.glob("*.json"))]
    if len(files) > 1:
        raise DataError(
            f"{root} has {len(files)} JSON files ({listed([file.name for file in files])}) and none is named after a "
            "split. Give the path of the one to read."
        )
    return {"train": _Source(files[0], _picture_folders(root, files[0]))} if files else {}


def _picture_folders(root: Path, json_path: Path) -> tuple[Path, ...]:
    """Where the pictures of a file may be: in folders named after it, in `images/`, beside it, in the root."""
    stem = re.sub(r"^(instances|_annotations)_", "", json_path.stem)
    words = [stem, re.sub(r"\d{4}$", "", stem)]
    named = [folder / word for word in words for folder in (root, root / "images")]
    folders = [*named, root / "images", root / "data", json_path.parent, root]
    return tuple(folder for folder in dict.fromkeys(folders) if folder.is_dir())


def _add(sources: dict[str, _Source], split: str, source: _Source) -> None:
    if split in sources:
        raise DataError(
            f"Two annotation files for the split {split!r}: {sources[split].json_path} and {source.json_path}. "
            "Keep one, or give the path of the one to read."
        )
    sources[split] = source
