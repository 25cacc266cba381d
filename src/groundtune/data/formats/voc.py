"""Pascal VOC: one XML file per image, corners in pixels.

`Annotations/*.xml` with the images in `JPEGImages/` (or `images/`), the splits in `ImageSets/Main/{train,val,test}.txt`; or
XML files beside their images, in one folder or in a folder for each split (Roboflow).

- The devkit counts pixels from 1 and includes the last one; labeling tools write edges from 0. The numbers are taken as
  edges, as they stand; half a pixel is less than the tools disagree by.
- Objects marked difficult are left out of training and do not count in evaluation, as in the devkit.
- The class list is `classes.txt` or `labels.txt` where there is one, and the names in the files, sorted.
- XML is read by defusedxml: no entities, no DTD, nothing from outside the file.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from defusedxml.ElementTree import fromstring

from groundtune.data.formats.files import IMAGE_SUFFIXES, SPLIT_NAMES, find_name_list, is_text, read_text
from groundtune.data.formats.records import RawBox, RawData, RawImage, Source, classes_by_name, collector
from groundtune.data.problems import Collector
from groundtune.data.sample import Sample
from groundtune.errors import DataError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_SUFFIXES = sorted(IMAGE_SUFFIXES, key=lambda suffix: (suffix != ".jpg", suffix))


def find_voc(root: Path) -> dict[str, Source]:
    """Find the splits of a VOC folder; none is {}.

    Raises:
        DataError: there are several years of a devkit.
    """
    homes = [root, *sorted(root.glob("VOC[0-9]*")), *sorted(root.glob("VOCdevkit/VOC[0-9]*"))]
    homes = [home for home in homes if (home / "Annotations").is_dir()]
    if len(homes) > 1:
        raise DataError(
            f"{root} has several VOC sets: {', '.join(str(home) for home in homes)}. Give the path of one."
        )
    if not homes:
        files = sorted(root.glob("*.xml"))
        return {"train": xml_source(root, files, root)} if files else {}
    home, annotations = homes[0], homes[0] / "Annotations"
    files = sorted((home / "ImageSets/Main").glob("*.txt"))
    lists = {SPLIT_NAMES[path.stem.lower()]: path for path in files if path.stem.lower() in SPLIT_NAMES}
    if not lists and (home / "ImageSets/Main/trainval.txt").is_file():
        lists["train"] = home / "ImageSets/Main/trainval.txt"
    if not lists:
        return {"train": xml_source(annotations, sorted(annotations.glob("*.xml")), home)}
    return {split: xml_source(path, _listed(path, annotations), home) for split, path in lists.items()}


def xml_source(file: Path, xml_paths: Sequence[Path], root: Path) -> Source:
    """A split of these XML files; images lie in the usual folders of `root` or beside the files."""
    beside = [path.parent for path in xml_paths[:1]]
    folders = dict.fromkeys([root / "JPEGImages", root / "images", root / "Images", *beside, root])
    read = partial(_read_split, xml_paths=xml_paths, root=root)
    return Source(file, [folder for folder in folders if folder.is_dir()], read)


def _listed(path: Path, annotations: Path) -> list[Path]:
    """The XML files of a list of names; a name may be followed by -1, 0 or 1 (the devkit's lists of one class)."""
    found = []
    for line in read_text(path).splitlines():
        name = line.strip()
        if not name or not is_text(name) or "\0" in name:
            continue
        whole = name == os.path.basename(name) and (annotations / f"{name}.xml").is_file()
        found.append(annotations / f"{name if whole else os.path.basename(name.split()[0])}.xml")
    return found


def _read_split(file: Path, *, xml_paths: Sequence[Path], root: Path) -> RawData:
    problems = collector()
    images: list[RawImage] = []
    for path in xml_paths:
        if not path.is_file():
            problems.add("annotation-missing", path.name)
            continue
        try:
            element = fromstring(path.read_bytes(), forbid_dtd=True)
        except (ElementTree.ParseError, ValueError, LookupError, OSError, RecursionError) as error:
            problems.add("annotation-file-unreadable", f"{path.name} ({error or type(error).__name__})")
            continue
        images.append(_image(element, path, problems))
    listed = find_name_list(root, root / "Annotations", *(path.parent for path in xml_paths[:1]))
    return RawData(file, "xyxy", images, classes_by_name(images, listed), problems)


def _image(element: ElementTree.Element, path: Path, problems: Collector) -> RawImage:
    stated = (element.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    own = [path.stem + suffix for suffix in _SUFFIXES]
    if stated and stated.isprintable():
        own = [stated, *own] if Path(stated).stem == path.stem else [*own, stated]
    size_hw = _number(element.findtext("size/height")), _number(element.findtext("size/width"))
    image = RawImage(tuple(dict.fromkeys(own)), path.name, size_hw)
    for number, item in enumerate(element.findall("object"), start=1):
        name = (item.findtext("name") or "").strip()
        box = item.find("bndbox")
        numbers = None if box is None else [_number(box.findtext(key)) for key in _CORNERS]
        difficult = (item.findtext("difficult") or "").strip() == "1"
        image.boxes.append(RawBox(numbers, name or None, f"{path.name} object {number}", difficult))
    return image


def _number(text: str | None) -> float | str | None:
    try:
        return float(text or "")
    except ValueError:
        return text


def write_voc_xml(sample: Sample, class_names: Sequence[str], file_name: str, path: Path) -> None:
    """Write one image's XML file; crowd boxes become difficult objects."""
    root = ElementTree.Element("annotation")
    _add(root, {"folder": "JPEGImages", "filename": file_name, "segmented": "0"})
    height, width = sample.size_hw
    _add(ElementTree.SubElement(root, "size"), {"width": str(width), "height": str(height), "depth": "3"})
    for box, c, crowd in zip(
        sample.boxes_xyxy.tolist(), sample.class_ids.tolist(), sample.crowd, strict=True
    ):
        item = ElementTree.SubElement(root, "object")
        _add(
            item,
            {"name": class_names[c], "pose": "Unspecified", "truncated": "0", "difficult": str(int(crowd))},
        )
        corners = ElementTree.SubElement(item, "bndbox")
        _add(corners, {key: f"{value:.9g}" for key, value in zip(_CORNERS, box, strict=True)})
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _add(parent: ElementTree.Element, texts: dict[str, str]) -> None:
    for key, text in texts.items():
        ElementTree.SubElement(parent, key).text = text
