"""Captions with phrases: ODVG and `tokens_positive` JSON.

ODVG (Open-GroundingDINO, MMDetection) is one image a line, with classes or a caption:

    {"filename": "a.jpg", "height": 4, "width": 4, "detection": {"instances": [
        {"bbox": [x1, y1, x2, y2], "label": 0, "category": "cat"}]}}
    {"filename": "b.jpg", "height": 4, "width": 4, "grounding": {"caption": "a cat .", "regions": [
        {"bbox": [x1, y1, x2, y2], "phrase": "a cat", "tokens_positive": [[0, 5]]}]}}

- Class names are the `category` of boxes, or those of `label_map.json` ({"0": "cat"}), in order.
- A region has one box, several, or none: then its phrase may be present or absent. Without
  `tokens_positive` its phrase is searched in the caption as whole words ("car" is not in "carrot");
  each occurrence is a span. Regions with the same spans are one phrase.

`tokens_positive` JSON (Flickr30k of MDETR and GLIP) is COCO with a caption for each of the
`images`, and spans for each of the `annotations` instead of a category. `tokens_positive_eval` of
an image lists its phrases, also those without a box. An image file may occur once per caption.
"""

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from posixpath import basename, commonprefix, dirname, splitext
from typing import Any

from groundtune.data.formats.coco import annotations_of, coco_lists, raw_images
from groundtune.data.formats.files import files_by_split, image_folders, is_text, json_lines
from groundtune.data.formats.records import Evidence, RawBox, RawData, RawImage, Source, classes_by_name
from groundtune.data.formats.tree import Tree
from groundtune.data.formats.words import split_of
from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset, Sample
from groundtune.errors import DataError
from groundtune.files import read_json

LABEL_MAP = "label_map.json"
_CONTENTS = {"detection", "grounding"}
_EXPECTED = "an object with 'filename' and 'detection' or 'grounding'"


def recognize(tree: Tree) -> Evidence | None:
    """Recognize ODVG by the keys of its lines, and `tokens_positive` files by that word."""
    chosen = []
    for file, (form, keys, _) in tree.signatures.items():
        is_odvg = form in ("lines", "object") and keys & {"filename", "file_name"} and keys & _CONTENTS
        if is_odvg or ("images" in keys and '"tokens_positive' in tree.head(file)):
            chosen.append(file)
    of_captions = {split_of(file) for file in chosen if "images" in tree.signatures[file].keys}
    chosen = [
        file for file in chosen if split_of(file) not in of_captions or "images" in tree.signatures[file].keys
    ]
    rank = 2 if chosen else 0  # reading a file explains what is wrong
    if not chosen and len(tree.declared(".jsonl")) != 1:
        return None
    chosen = chosen or tree.declared(".jsonl")
    sources = files_by_split(chosen, lambda file: _source(tree, file), tree)
    return Evidence("odvg", rank, sources, example=chosen[0])


def _source(tree: Tree, file: str) -> Source:
    """Return the split of a file; the label map of ODVG is beside it, or in the root."""
    folders = image_folders(tree, file)
    if "images" in tree.signatures[file].keys:
        return Source(tree.root / file, folders, lambda path: raw_tokens_positive(read_json(path), path))
    stem = splitext(basename(file))[0]
    maps = [each for each in tree.suffixed(".json") if each.endswith(LABEL_MAP)]
    likely = [each for each in maps if dirname(each) == dirname(file)] or maps
    own = [each for each in likely if commonprefix([basename(each), stem])] or likely
    label_map = tree.root / own[0] if own else None
    return Source(tree.root / file, folders, partial(_raw_odvg, label_map=label_map))


def _raw_odvg(path: Path, label_map: Path | None) -> RawData:
    """Read the records of an ODVG file; raise a `DataError` if no line is ODVG."""
    raw = RawData(path, "xyxy")
    known = _label_names(label_map) if label_map else {}
    numbers: dict[str, int] = {}
    for where, row in json_lines(path):
        image = _image(row, where, known, numbers, raw.problems) if isinstance(row, dict) else None
        if image is None:
            raw.problems.add("image-broken", f"{where} is not {_EXPECTED}")
        else:
            raw.images.append(image)
    broken = raw.problems.count("image-broken")
    if broken and not raw.images:
        raise DataError(f"{path} is not ODVG: none of its {broken} lines is {_EXPECTED}.")
    listed = [*known.values()] or sorted(numbers, key=lambda name: (numbers[name], name))
    number_of = {name: number for number, name in known.items()} or numbers
    classes = classes_by_name(raw.images, listed)
    if len({number_of[entry.key] for entry in classes if entry.key in number_of}) == len(classes):
        classes = [entry._replace(number=number_of[entry.key]) for entry in classes]
    raw.classes += classes
    return raw


def _label_names(path: Path) -> dict[int, str]:
    content = read_json(path)
    if isinstance(content, list):
        content = {str(number): name for number, name in enumerate(content)}
    usable = isinstance(content, dict) and all(
        key.isdecimal() and len(key) < 9 and is_text(name) for key, name in content.items()
    )
    if not usable or len({int(key) for key in content}) < len(content):
        raise DataError(
            f'{path} is not a label map. Expected numbers and names, such as {{"0": "cat", "1": "dog"}}.'
        )
    return {int(key): content[key] for key in sorted(content, key=int)}


def _image(
    row: dict[str, Any], where: str, known: dict[int, str], numbers: dict[str, int], problems: Collector
) -> RawImage | None:
    """Read one line; None if it has no image. `numbers` gets the labels of categories."""
    name = row.get("filename", row.get("file_name"))
    if not is_text(name) or not name.strip():
        return None
    image = RawImage((name.replace("\\", "/"),), where, (row.get("height"), row.get("width")))
    detection, grounding = row.get("detection"), row.get("grounding")
    if isinstance(grounding, dict) and is_text(grounding.get("caption")):
        _add_regions(image, grounding, problems)
        return image
    instances = detection.get("instances", []) if isinstance(detection, dict) else None
    if not isinstance(instances, list):
        return None
    for index, instance in enumerate(instances, start=1):
        at = f"{where} instance {index}"
        if not isinstance(instance, dict):
            problems.add("annotation-broken", at)
            continue
        label, category = instance.get("label"), instance.get("category")
        number = label if type(label) is int and abs(label) < 2**31 else None
        if not is_text(category):
            category = known.get(number) if number is not None else None
        elif number is not None:
            numbers.setdefault(category, number)
        image.boxes.append(RawBox(instance.get("bbox"), category, at))
    return image


def _add_regions(image: RawImage, grounding: dict[str, Any], problems: Collector) -> None:
    """Add the regions of a caption to an image: their phrases and boxes."""
    image.caption = caption = grounding["caption"]
    numbers: dict[str, int] = {}  # of phrases
    regions = grounding.get("regions", [])
    for index, region in enumerate(regions if isinstance(regions, list) else [], start=1):
        where = f"{image.where} region {index}"
        if not isinstance(region, dict):
            problems.add("annotation-broken", where)
            continue
        spans, phrase = region.get("tokens_positive"), region.get("phrase")
        if not isinstance(spans, list):
            spans = phrase_spans(caption, phrase)
        if not spans:
            example = f"{where} of {image.file_names[0]} ({str(phrase)[:40]!r})"
            problems.add("phrase-not-in-caption", example)
            continue
        spans = [spans] if len(spans) == 2 and all(isinstance(end, int) for end in spans) else spans
        try:
            number = numbers.setdefault(json.dumps(spans), len(numbers))
        except (ValueError, RecursionError):
            problems.add("annotation-broken", where)
            continue
        if number == len(image.phrases):
            image.phrases.append(spans)
        box = region.get("bbox", [])
        several = isinstance(box, list) and (not box or any(isinstance(item, list) for item in box))
        image.boxes += [RawBox(four, number, where) for four in (box if several else [box])]


def phrase_spans(caption: str, phrase: Any) -> list[list[int]]:
    """Return where a phrase, or each of several, occurs in a caption; case is ignored."""
    found = []
    for text in phrase if isinstance(phrase, list) else [phrase]:
        if isinstance(text, str) and text.strip():
            words = r"\s+".join(re.escape(word) for word in text.split())
            matches = re.finditer(rf"(?<!\w){words}(?!\w)", caption, re.IGNORECASE)
            found += [[match.start(), match.end()] for match in matches]
    return sorted(found)


def raw_tokens_positive(content: Any, json_path: Path) -> RawData:
    """Read the records of `tokens_positive` content; raise a `DataError` for other content."""
    images, annotations = coco_lists(content, json_path, ("images", "annotations"))
    raw = RawData(json_path, "xywh")
    rows, image_of = raw_images(images, raw.problems)
    numbers: dict[str, dict[str, int]] = {image.where: {} for image in image_of.values()}
    for row, image in zip(rows, image_of.values(), strict=True):
        if not is_text(row.get("caption")):
            raw.problems.add("caption-missing", image.file_names[0])
            continue
        image.caption = row["caption"]
        raw.images.append(image)
        phrases = row.get("tokens_positive_eval")
        for spans in phrases if isinstance(phrases, list) else []:
            _phrase_number(image, numbers[image.where], spans)
    for image, row, where, crowd in annotations_of(annotations, image_of, raw.problems):
        if image.caption is not None:
            number = _phrase_number(image, numbers[image.where], row.get("tokens_positive"))
            image.boxes.append(RawBox(row.get("bbox"), number, where, crowd))
    return raw


def _phrase_number(image: RawImage, known: dict[str, int], spans: Any) -> int:
    """Return the index of a phrase in its image, which gets it if its spans are new."""
    spans = spans if isinstance(spans, list) and spans else [None]  # wrong spans are reported later
    key = [tuple(s) if isinstance(s, list) and all(isinstance(e, int) for e in s) else None for s in spans]
    number = known.setdefault(str(key), len(known))
    if number == len(image.phrases):
        image.phrases.append(spans)
    return number


def write_odvg(dataset: Dataset, file_names: Sequence[str], path: Path) -> None:
    """Write one split and its label map, without crowd boxes: ODVG cannot express them."""
    with path.open("w", encoding="utf-8") as file:
        for sample, file_name in zip(dataset.samples, file_names, strict=True):
            height, width = sample.size_hw
            row = {"filename": file_name, "height": height, "width": width}
            file.write(json.dumps(row | _content(sample, dataset.class_names)) + "\n")
    if dataset.class_names:
        names = {str(number): name for number, name in enumerate(dataset.class_names)}
        (path.parent / LABEL_MAP).write_text(json.dumps(names), encoding="utf-8")


def _content(sample: Sample, class_names: Sequence[str]) -> dict[str, Any]:
    kept = ~sample.crowd
    boxes = list(zip(sample.boxes_xyxy[kept].tolist(), sample.class_ids[kept].tolist(), strict=True))
    grounding = sample.grounding
    if grounding is None:
        instances = [{"bbox": box, "label": c, "category": class_names[c]} for box, c in boxes]
        return {"detection": {"instances": instances}}
    regions: list[dict[str, Any]] = []
    for number, (phrase, spans) in enumerate(zip(grounding.phrases, grounding.spans, strict=True)):
        region = {"phrase": phrase, "tokens_positive": spans}
        regions += [{"bbox": box} | region for box, c in boxes if c == number] or [{"bbox": []} | region]
    return {"grounding": {"caption": grounding.caption, "regions": regions}}
