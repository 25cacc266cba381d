"""`groundtune convert`: a data set of any format, written as COCO, YOLO, Pascal VOC or ODVG.

Every split is written as it was read; none is made. Images are copied byte for byte or linked. One exception: YOLO does not
state sizes, so an image whose annotations are in another frame than viewers show it in (EXIF orientation, rescaled since)
is saved anew in that frame; everywhere else the boxes would be wrong on it.

    coco  SPLIT/_annotations.coco.json, images beside it      yolo  data.yaml, SPLIT/images/, SPLIT/labels/
    odvg  SPLIT/annotations.odvg.jsonl, images beside it      voc   Annotations/, JPEGImages/, ImageSets/Main/, classes.txt
"""

import itertools
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from groundtune.data.formats.coco import write_coco
from groundtune.data.formats.detect import read_splits
from groundtune.data.formats.files import stored_size
from groundtune.data.formats.odvg import LABEL_MAP, write_odvg
from groundtune.data.formats.voc import write_voc_xml
from groundtune.data.formats.yolo import write_yolo_labels, write_yolo_yaml
from groundtune.data.images import load_image
from groundtune.data.sample import Dataset, Sample
from groundtune.errors import DataError

FORMATS = ("coco", "yolo", "voc", "odvg")


@dataclass
class Converted:
    """What was written."""

    images: dict[str, int] = field(default_factory=dict)  # by split
    boxes: dict[str, int] = field(default_factory=dict)  # by split
    messages: list[str] = field(
        default_factory=list
    )  # what reading found, and what the format could not take


def convert(data: Path, out: Path, format: str, *, link: bool = False) -> Converted:
    """Write a data set in another format. The folder appears whole or not at all.

    Args:
        data: anything that `load_splits` reads.
        out: new or empty folder.
        format: "coco", "yolo", "voc" or "odvg".
        link: link the images (symbolic links) in place of copying them.

    Raises:
        DataError: the data cannot be read, the folder is not empty or cannot be written, or the format cannot express the
            data (captions as YOLO or VOC).
    """
    data, out = Path(data), Path(out)
    if format not in FORMATS:
        raise DataError(f"format: expected {', '.join(FORMATS)}, got {format!r}.")
    ensure_empty_output(out)
    return write_data(read_splits(data), out, format, link=link)


def ensure_empty_output(out: Path) -> None:
    """Refuse a folder to write that holds something; a `DataError`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty. Remove it, or choose another folder to write to.")


def write_data(splits: dict[str, Dataset], out: Path, format: str, *, link: bool = False) -> Converted:
    """Write splits that were read or made; as `convert`, with its errors."""
    if format in ("yolo", "voc") and any(s.grounding is not None for d in splits.values() for s in d.samples):
        raise DataError(
            f"The data has captions, which {format.upper()} cannot express. Choose --format odvg or coco."
        )
    odd = [repr(name) for name in next(iter(splits.values())).class_names if not name.isprintable()]
    if format == "voc" and odd:
        told = f"class names that XML cannot hold: {', '.join(odd)}. Rename them, or choose another format."
        raise DataError(f"The data has {told}")
    done = Converted(messages=[message for dataset in splits.values() for message in dataset.messages])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
            unfinished = Path(temporary) / "data"
            unfinished.mkdir()
            _write(splits, unfinished, format, link, done)
            if out.exists():
                out.rmdir()
            unfinished.rename(out)
    except OSError as error:
        raise DataError(f"Cannot write {out}: {error.strerror or error}. Nothing was left there.") from error
    return done


def _write(splits: dict[str, Dataset], folder: Path, format: str, link: bool, done: Converted) -> None:
    shared: set[str] = set()  # names of images
    for split, dataset in splits.items():
        taken = shared if format == "voc" else set()  # where the images of all splits share a folder
        names = [_new_name(sample.image_path, taken) for sample in dataset.samples]
        place = folder / {"voc": "JPEGImages", "yolo": f"{split}/images"}.get(format, split)
        place.mkdir(parents=True, exist_ok=True)
        for sample, name in zip(dataset.samples, names, strict=True):
            _put_image(sample, place / name, link, states_size=format != "yolo")
        _write_split(split, dataset, names, folder, format)
        lost = sum(int(sample.crowd.sum()) for sample in dataset.samples) if format in ("yolo", "odvg") else 0
        if lost:
            told = f"{lost} boxes of groups were left out, {format.upper()} has no form for them."
            done.messages.append(f"{split}: {told}")
        done.images[split] = len(names)
        done.boxes[split] = sum(len(sample.boxes_xyxy) for sample in dataset.samples) - lost
    if format == "yolo":
        write_yolo_yaml(splits, folder / "data.yaml")
    if format == "voc":
        names = next(iter(splits.values())).class_names
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _write_split(split: str, dataset: Dataset, names: list[str], folder: Path, format: str) -> None:
    """Write the annotations of one split beside the images that are there already."""
    if format == "coco":
        write_coco(dataset, names, folder / split / "_annotations.coco.json")
    elif format == "odvg":
        write_odvg(dataset, names, folder / split / "annotations.odvg.jsonl")
        if (folder / split / LABEL_MAP).is_file():
            (folder / split / LABEL_MAP).replace(folder / LABEL_MAP)  # one list for all splits
    elif format == "yolo":
        (folder / split / "labels").mkdir()
        for sample, name in zip(dataset.samples, names, strict=True):
            write_yolo_labels(sample, folder / split / "labels" / f"{Path(name).stem}.txt")
    else:
        for place in ("Annotations", "ImageSets/Main"):
            (folder / place).mkdir(parents=True, exist_ok=True)
        for sample, name in zip(dataset.samples, names, strict=True):
            write_voc_xml(
                sample, dataset.class_names, name, folder / "Annotations" / f"{Path(name).stem}.xml"
            )
        stems = "".join(f"{Path(name).stem}\n" for name in names)
        listed = "val" if split == "valid" else split
        (folder / "ImageSets/Main" / f"{listed}.txt").write_text(stems, encoding="utf-8")


def _new_name(path: Path, taken: set[str]) -> str:
    """A file name whose stem no other image has, whatever the case of its letters."""
    name = re.sub(r"[\x00-\x1f\x7f]", "_", path.name).strip()
    stem, suffix = Path(name).stem.strip() or "image", Path(name).suffix
    numbered = (f"{stem}-{number}" for number in itertools.count(2))
    unique = next(one for one in itertools.chain([stem], numbered) if one.lower() not in taken)
    taken.add(unique.lower())
    return unique + suffix


def _put_image(sample: Sample, target: Path, link: bool, states_size: bool) -> None:
    if not states_size and stored_size(sample.image_path, upright=True) != sample.size_hw:
        load_image(sample.image_path, sample.size_hw).save(target, quality=95)  # of JPEG; others do not mind
    elif link:
        target.symlink_to(sample.image_path.resolve())
    else:
        shutil.copyfile(sample.image_path, target)
