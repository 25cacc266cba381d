"""Pascal VOC: one XML file per image, corners in pixels.

XML files are beside their images, or in a folder such as `Annotations/` for `JPEGImages/`. Splits
are lists of names, in `ImageSets/Main/` or above, or folders.

- The devkit and its imitators (Roboflow, supervision) count pixels from 1 and name the database;
  their first two numbers are reduced by 1. Other tools, such as LabelImg, write edges from 0.
- Objects marked difficult are not trained on and not counted in evaluation, as in the devkit.
- Classes are those of `classes.txt` or `labels.txt`, then the others in the files, sorted.
- XML is parsed by defusedxml: no entities, no DTD, nothing from outside the file.
"""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from posixpath import basename, dirname, splitext
from xml.etree import ElementTree

from defusedxml.ElementTree import fromstring

from groundtune.data.formats.files import find_name_list, image_folders, is_text, to_number
from groundtune.data.formats.records import Evidence, RawBox, RawData, RawImage, Source, classes_by_name
from groundtune.data.formats.tree import Tree, join
from groundtune.data.formats.words import folder_split
from groundtune.data.sample import Sample
from groundtune.files import MAX_LABELS, read_bytes

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_COUNTS_FROM_ONE = re.compile(r"VOC|PASCAL|roboflow", re.IGNORECASE)
_PROBED = 20  # files


def recognize(tree: Tree) -> Evidence | None:
    """Recognize XML files with an `annotation`, or beside images."""
    files = tree.declared(".xml")
    named = [file for file in files[:_PROBED] if re.search(r"<annotation[\s>]", tree.head(file, 4096))]
    if not named and not any(map(tree.image_of, files[:_PROBED])):
        return None
    homes = sorted({match[0] for file in files if (match := re.match(r"(?:.*/)?VOC\d{4}(?=/)", file))})
    if len(homes) > 1:
        several = ", ".join(str(tree.root / home) for home in homes)
        refused = {"": f"{tree.root} has several VOC sets: {several}. Give the path of one."}
        return Evidence("voc", 2, {}, refused, files[0])
    groups: dict[str, list[str]] = {}
    for file in files:
        groups.setdefault(folder_split(dirname(file)) or "", []).append(file)
    sources = {split: _source(tree, group, files[0]) for split, group in groups.items()}
    return Evidence("voc", 2 if named else 1, sources, example=files[0])


def _source(tree: Tree, files: Sequence[str], first: str) -> Source:
    folder = dirname(first)
    listed = find_name_list(tree, [dirname(folder), folder, ""])
    image_dirs = [join(dirname(folder), name) for name in ("JPEGImages", "images", "Images")]
    image_dirs += [*image_folders(tree, first), folder]
    read = partial(_read, tree=tree, files=files, listed=listed)
    return Source(tree.root / folder, [name for name in image_dirs if name in tree.folders], read)


def _read(file: Path, *, tree: Tree, files: Sequence[str], listed: Sequence[str]) -> RawData:
    raw = RawData(file, "xyxy")
    for each in files:
        try:
            element = fromstring(read_bytes(tree.root / each, MAX_LABELS), forbid_dtd=True)
        except (ElementTree.ParseError, ValueError, LookupError, OSError, RecursionError) as error:
            example = f"{basename(each)} ({error or type(error).__name__})"
            raw.problems.add("annotation-file-unreadable", example)
            continue
        raw.images.append(_image(element, each, tree.image_of(each)))
    raw.classes += classes_by_name(raw.images, listed)
    return raw


def _image(element: ElementTree.Element, file: str, image: str | None) -> RawImage:
    """Read an XML file; without an image of its name, the one that it states counts."""
    where, stem = basename(file), splitext(basename(file))[0]
    stated = (element.findtext("filename") or "").strip().replace("\\", "/")
    names = [stem, stated] if is_text(stated) and stated.isprintable() and basename(stated) else [stem]
    if splitext(basename(stated))[0] == stem:
        names.reverse()
    size_hw = to_number(element.findtext("size/height")), to_number(element.findtext("size/width"))
    raw = RawImage((image, *names) if image else tuple(names), where, size_hw)
    one = 1 if _COUNTS_FROM_ONE.search(element.findtext("source/database") or "") else 0
    for number, item in enumerate(element.findall("object"), start=1):
        name = (item.findtext("name") or "").strip()
        box = item.find("bndbox")
        numbers = None if box is None else [to_number(box.findtext(key)) for key in _CORNERS]
        if one and numbers and all(isinstance(each, float) for each in numbers):
            numbers = [numbers[0] - one, numbers[1] - one, *numbers[2:]]  # type: ignore[operator]
        difficult = (item.findtext("difficult") or "").strip() == "1"
        raw.boxes.append(RawBox(numbers, name or None, f"{where} object {number}", difficult))
    return raw


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
