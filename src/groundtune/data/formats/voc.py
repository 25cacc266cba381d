"""Pascal VOC: one XML file per image, corners in pixels.

The data set is `Annotations/*.xml` with images in `JPEGImages/` (or `images/`) and splits in
`ImageSets/Main/{train,val,test}.txt`; or XML files beside their images, also in a folder per split.

- The devkit counts pixels from 1 and includes the last one; labeling tools write edges from 0.
  Numbers are used as edges, unchanged: the tools differ by more than half a pixel.
- Objects marked difficult are not trained on and not counted in evaluation, as in the devkit.
- Classes are those of `classes.txt` or `labels.txt`, then the others in the files, sorted.
- XML is parsed by defusedxml: no entities, no DTD, nothing from outside the file.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from defusedxml.ElementTree import fromstring

from groundtune.data.formats.files import SPLIT_NAMES, find_name_list, is_text, to_number
from groundtune.data.formats.records import RawBox, RawData, RawImage, Source, classes_by_name
from groundtune.data.images import IMAGE_SUFFIXES
from groundtune.data.sample import Sample
from groundtune.errors import DataError
from groundtune.files import read_text

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_SUFFIXES = sorted(IMAGE_SUFFIXES, key=lambda suffix: (suffix != ".jpg", suffix))


def find_voc(root: Path) -> dict[str, Source]:
    """Find the splits of a VOC folder, {} if it is none; several years are a `DataError`."""
    homes = [root, *sorted(root.glob("VOC[0-9]*")), *sorted(root.glob("VOCdevkit/VOC[0-9]*"))]
    homes = [home for home in homes if (home / "Annotations").is_dir()]
    if len(homes) > 1:
        raise DataError(f"{root} has several VOC sets: {', '.join(map(str, homes))}. Give the path of one.")
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
    """Return a split of XML files; its images are in the usual folders or beside the files."""
    beside = [path.parent for path in xml_paths[:1]]
    folders = dict.fromkeys([root / "JPEGImages", root / "images", root / "Images", *beside, root])
    read = partial(_read_split, xml_paths=xml_paths, root=root)
    return Source(file, [folder for folder in folders if folder.is_dir()], read)


def _listed(path: Path, annotations: Path) -> list[Path]:
    """Return the XML files of a list of names; -1, 0 or 1 may follow (the devkit's class lists)."""
    found = []
    for line in read_text(path).splitlines():
        name = line.strip()
        if not name or not is_text(name) or "\0" in name:
            continue
        whole = name == os.path.basename(name) and (annotations / f"{name}.xml").is_file()
        found.append(annotations / f"{name if whole else os.path.basename(name.split()[0])}.xml")
    return found


def _read_split(file: Path, *, xml_paths: Sequence[Path], root: Path) -> RawData:
    raw = RawData(file, "xyxy")
    for path in xml_paths:
        if not path.is_file():
            raw.problems.add("annotation-missing", path.name)
            continue
        try:
            element = fromstring(path.read_bytes(), forbid_dtd=True)
        except (ElementTree.ParseError, ValueError, LookupError, OSError, RecursionError) as error:
            raw.problems.add("annotation-file-unreadable", f"{path.name} ({error or type(error).__name__})")
            continue
        raw.images.append(_image(element, path))
    listed = find_name_list(root, root / "Annotations", *(path.parent for path in xml_paths[:1]))
    raw.classes += classes_by_name(raw.images, listed)
    return raw


def _image(element: ElementTree.Element, path: Path) -> RawImage:
    stated = (element.findtext("filename") or "").strip().replace("\\", "/").rpartition("/")[2]
    names = [path.stem + suffix for suffix in _SUFFIXES]
    if stated and stated.isprintable():
        names = [stated, *names] if Path(stated).stem == path.stem else [*names, stated]
    size_hw = to_number(element.findtext("size/height")), to_number(element.findtext("size/width"))
    image = RawImage(tuple(dict.fromkeys(names)), path.name, size_hw)
    for number, item in enumerate(element.findall("object"), start=1):
        name = (item.findtext("name") or "").strip()
        box = item.find("bndbox")
        numbers = None if box is None else [to_number(box.findtext(key)) for key in _CORNERS]
        difficult = (item.findtext("difficult") or "").strip() == "1"
        image.boxes.append(RawBox(numbers, name or None, f"{path.name} object {number}", difficult))
    return image


def write_voc_xml(sample: Sample, class_names: Sequence[str], file_name: str, path: Path) -> None:
    """Write the XML file of one image; crowd boxes become difficult objects."""
    root = ElementTree.Element("annotation")
    _add(root, folder="JPEGImages", filename=file_name, segmented="0")
    height, width = sample.size_hw
    _add(ElementTree.SubElement(root, "size"), width=str(width), height=str(height), depth="3")
    rows = zip(sample.boxes_xyxy.tolist(), sample.class_ids.tolist(), sample.crowd, strict=True)
    for box, c, crowd in rows:
        item = ElementTree.SubElement(root, "object")
        _add(item, name=class_names[c], pose="Unspecified", truncated="0", difficult=str(int(crowd)))
        corners = {key: f"{value:.9g}" for key, value in zip(_CORNERS, box, strict=True)}
        _add(ElementTree.SubElement(item, "bndbox"), **corners)
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _add(parent: ElementTree.Element, **texts: str) -> None:
    for key, text in texts.items():
        ElementTree.SubElement(parent, key).text = text
