"""Write a data set of any format as COCO, YOLO, Pascal VOC, ODVG, CSV or for Hugging Face.

Every split is written as it was read. Images are copied byte for byte, or linked. One exception:
YOLO does not state sizes, so an image whose annotations are in another frame than viewers show
(EXIF orientation, another scale) is saved again in that frame.

    coco  SPLIT/_annotations.coco.json, images beside it
    odvg  SPLIT/annotations.odvg.jsonl, images beside it
    yolo  data.yaml, SPLIT/images/, SPLIT/labels/
    voc   Annotations/, JPEGImages/, ImageSets/Main/, classes.txt
    csv   SPLIT/_annotations.csv, images beside it; classes.txt
    hf    SPLIT/metadata.jsonl, images beside it; README.md with the class names
"""

import itertools
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from groundtune.config import DATA_FORMATS
from groundtune.data.formats.coco import write_coco
from groundtune.data.formats.csv import write_csv
from groundtune.data.formats.detect import read_splits
from groundtune.data.formats.files import stored_size
from groundtune.data.formats.hf import write_hf_readme, write_metadata
from groundtune.data.formats.odvg import LABEL_MAP, write_odvg
from groundtune.data.formats.voc import write_voc_xml
from groundtune.data.formats.words import fold
from groundtune.data.formats.yolo import write_yolo_labels, write_yolo_yaml
from groundtune.data.images import IMAGE_SUFFIXES, has_suffix, load_image, open_image
from groundtune.data.sample import Dataset, Sample
from groundtune.errors import DataError
from groundtune.files import atomic_folder, ensure_empty_output

_UNSAFE = r"[\\\x00-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff\ud800-\udfff]"
"""Characters of file names that end lines, or that some of the formats cannot hold."""


@dataclass
class Converted:
    """What was written."""

    images: dict[str, int] = field(default_factory=dict)  # by split
    boxes: dict[str, int] = field(default_factory=dict)  # by split
    messages: list[str] = field(
        default_factory=list
    )  # problems of reading, and what the format cannot express


def convert(data: Path, out: Path, format: str, *, link: bool, input_format: str | None) -> Converted:
    """Write a data set in another format. The folder appears whole or not at all.

    Args:
        data: anything that `load_splits` reads.
        out: new or empty folder.
        format: one of `DATA_FORMATS`.
        link: use symbolic links instead of copies of the images.
        input_format: name of the reader; None: the one with the best evidence.

    Raises:
        DataError: the data cannot be read, `out` is not empty or cannot be written, or the format
            cannot express the data (captions, except as COCO or ODVG).
    """
    if format not in DATA_FORMATS:
        raise DataError(f"format: expected {', '.join(DATA_FORMATS)}, got {format!r}.")
    ensure_empty_output(Path(out))
    splits = read_splits(Path(data), format=input_format)
    findings = [(split, each) for split, dataset in splits.items() for each in dataset.findings]
    errors = [f"{split}: {each} {each.fix}" for split, each in findings if each.severity == "error"]
    if errors:
        raise DataError("\n  ".join(errors))
    return write_data(splits, Path(out), format, link=link)


def write_data(splits: dict[str, Dataset], out: Path, format: str, *, link: bool) -> Converted:
    """Write splits in memory; arguments and errors are those of `convert`."""
    if format not in ("coco", "odvg") and any(
        s.grounding is not None for d in splits.values() for s in d.samples
    ):
        raise DataError(f"{format.upper()} cannot express captions, which the data has. Choose odvg or coco.")
    names = next(iter(splits.values())).class_names
    odd = [repr(name) for name in names if not name or not name.isprintable() or name != name.strip()]
    if format in ("voc", "csv") and odd:
        raise DataError(
            f"{format.upper()} cannot hold the class names {', '.join(odd)}. Rename them, or choose another "
            "format."
        )
    done = Converted(messages=[message for dataset in splits.values() for message in dataset.messages])
    try:
        with atomic_folder(out) as folder:
            _write(splits, folder, format, link, done)
    except OSError as error:
        raise DataError(f"Cannot write {out}: {error.strerror or error}. Nothing was written.") from error
    return done


def _write(splits: dict[str, Dataset], folder: Path, format: str, link: bool, done: Converted) -> None:
    shared_names: set[str] = set()
    for split, dataset in splits.items():
        taken = shared_names if format == "voc" else set()  # splits share one folder
        names = [_new_name(sample.image_path, taken) for sample in dataset.samples]
        image_folder = folder / {"voc": "JPEGImages", "yolo": f"{split}/images"}.get(format, split)
        image_folder.mkdir(parents=True, exist_ok=True)
        for sample, name in zip(dataset.samples, names, strict=True):
            _write_image(sample, image_folder / name, link, states_size=format != "yolo")
        _write_annotations(split, dataset, names, folder, format)
        lost = sum(int(sample.crowd.sum()) for sample in dataset.samples) if format in ("yolo", "odvg") else 0
        if lost:
            done.messages.append(
                f"{split}: {lost} boxes of groups skipped: {format.upper()} cannot express them."
            )
        done.images[split] = len(names)
        done.boxes[split] = sum(len(sample.boxes_xyxy) for sample in dataset.samples) - lost
    class_names = next(iter(splits.values())).class_names
    if format == "yolo":
        write_yolo_yaml(splits, folder / "data.yaml")
    elif format == "hf":
        write_hf_readme(class_names, folder / "README.md")
    elif format in ("voc", "csv"):
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")


def _write_annotations(split: str, dataset: Dataset, names: list[str], folder: Path, format: str) -> None:
    if format == "coco":
        write_coco(dataset, names, folder / split / "_annotations.coco.json")
    elif format == "odvg":
        write_odvg(dataset, names, folder / split / "annotations.odvg.jsonl")
        if (folder / split / LABEL_MAP).is_file():
            (folder / split / LABEL_MAP).replace(folder / LABEL_MAP)  # one for all splits
    elif format == "csv":
        write_csv(dataset, names, folder / split / "_annotations.csv")
    elif format == "hf":
        write_metadata(dataset, names, folder / split / "metadata.jsonl")
    elif format == "yolo":
        (folder / split / "labels").mkdir()
        for sample, name in zip(dataset.samples, names, strict=True):
            write_yolo_labels(sample, folder / split / "labels" / f"{Path(name).stem}.txt")
    else:
        for subfolder in ("Annotations", "ImageSets/Main"):
            (folder / subfolder).mkdir(parents=True, exist_ok=True)
        for sample, name in zip(dataset.samples, names, strict=True):
            path = folder / "Annotations" / f"{Path(name).stem}.xml"
            write_voc_xml(sample, dataset.class_names, name, path)
        stems = "".join(f"{Path(name).stem}\n" for name in names)
        list_name = "val" if split == "valid" else split
        (folder / "ImageSets/Main" / f"{list_name}.txt").write_text(stems, encoding="utf-8")


def _new_name(path: Path, taken: set[str]) -> str:
    """Return a file name with a stem that is unique, regardless of case, and an image's suffix."""
    name = re.sub(_UNSAFE, "_", path.name).strip().lstrip(".")  # not a hidden file
    stem, suffix = Path(name).stem.strip() or "image", Path(name).suffix
    if not has_suffix(f"x{suffix}", IMAGE_SUFFIXES):  # else it is not seen as an image
        stem, suffix = name.rstrip(".") or "image", _suffix_of(path)
    stems = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    unique = next(candidate for candidate in stems if fold(candidate) not in taken)
    taken.add(fold(unique))
    return unique + suffix


def _suffix_of(path: Path) -> str:
    """Return the suffix of the format of an image file; ".jpg" if it cannot be read."""
    try:
        with open_image(path) as image:
            suffix = f".{image.format or ''}".lower()
    except Exception:  # Pillow raises many kinds for broken files
        return ".jpg"
    return suffix if suffix in IMAGE_SUFFIXES else ".jp2"


def _write_image(sample: Sample, target: Path, link: bool, states_size: bool) -> None:
    if not states_size and stored_size(sample.image_path, upright=True) != sample.size_hw:
        load_image(sample.image_path, sample.size_hw).save(target, quality=95)
    elif link:
        target.symlink_to(sample.image_path.resolve())
    else:
        shutil.copyfile(sample.image_path, target)
