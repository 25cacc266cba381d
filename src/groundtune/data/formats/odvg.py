"""ODVG: one JSON object a line and image, of Open-GroundingDino and MMDetection; classes or captions, even in one file.

    {"filename": "a.jpg", "height": 4, "width": 4, "detection": {"instances": [
        {"bbox": [x1, y1, x2, y2], "label": 0, "category": "cat"}]}}
    {"filename": "b.jpg", "height": 4, "width": 4, "grounding": {"caption": "a cat .", "regions": [
        {"bbox": [x1, y1, x2, y2], "phrase": "a cat", "tokens_positive": [[0, 5]]}]}}

- Class names are the `category` of the boxes, or come from `label_map.json` ({"0": "cat"}) beside the file; its order is kept.
- A region has one box, several, or none (its phrase is known to be there, or to be absent). Without `tokens_positive` its
  phrase is looked for as whole words, so that "car" is not found in "carrot" (pitfalls 21 and 24), and has a span for each
  place that it stands in. Regions with the same spans are one phrase.

`tokens_positive` JSON, the form of MDETR's and GLIP's Flickr30k: COCO's lists, with a caption for each of the `images` and
character spans for each of the `annotations` in place of a category.

A phrase is a set of spans; boxes with the same spans are boxes of one phrase. `tokens_positive_eval` of an image lists its
phrases, those without a box too. The same image file may stand there once per caption.
"""

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from groundtune.data.formats.coco import annotations_of, coco_lists, raw_images
from groundtune.data.formats.files import is_text, read_json, read_text
from groundtune.data.formats.records import (
    RawBox,
    RawClass,
    RawData,
    RawImage,
    Source,
    classes_by_name,
    collector,
)
from groundtune.data.problems import Collector
from groundtune.data.sample import Dataset, Sample
from groundtune.errors import DataError

LABEL_MAP = "label_map.json"


def odvg_source(path: Path, image_dirs: Sequence[Path], root: Path) -> Source:
    """A split of one file; its label map lies beside it or in the root."""
    label_map = next(
        (folder / LABEL_MAP for folder in (path.parent, root) if (folder / LABEL_MAP).is_file()), None
    )
    return Source(path, image_dirs, partial(_raw_odvg, label_map=label_map))


def _raw_odvg(path: Path, label_map: Path | None) -> RawData:
    """Take the records out of an ODVG file; a DataError where no line of it is ODVG, or the label map is none."""
    problems = collector()
    known = _label_names(label_map) if label_map else {}
    images = []
    numbers: dict[str, int] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        image = _image(row, where, known, numbers, problems) if isinstance(row, dict) else None
        if image is None:
            problems.add(
                "image-broken", f"{where} is no ODVG object with 'filename' and 'detection' or 'grounding'"
            )
        else:
            images.append(image)
    broken = problems.count("image-broken")
    if broken and not images:
        raise DataError(
            f"{path} is not ODVG: none of its {broken} lines is an object with 'filename' and 'detection' or 'grounding'."
        )
    classes = classes_by_name(
        images, [*known.values()] or sorted(numbers, key=lambda name: (numbers[name], name))
    )
    number_of = {name: number for number, name in known.items()} or numbers
    if len({number_of[entry.key] for entry in classes if entry.key in number_of}) == len(
        classes
    ):  # unique and complete
        classes = [RawClass(entry.key, entry.name, number_of[entry.key]) for entry in classes]
    return RawData(path, "xyxy", images, classes, problems)


def _label_names(path: Path) -> dict[int, str]:
    content = read_json(path)
    if isinstance(content, list):
        content = {str(number): name for number, name in enumerate(content)}
    usable = isinstance(content, dict) and all(
        k.isdecimal() and len(k) < 9 and is_text(v) for k, v in content.items()
    )
    if not usable or len({int(key) for key in content}) < len(content):
        raise DataError(
            f'{path} is not a label map. Expected numbers and names, such as {{"0": "cat", "1": "dog"}}.'
        )
    return {int(key): content[key] for key in sorted(content, key=int)}


def _image(
    row: dict[str, Any], where: str, known: dict[int, str], numbers: dict[str, int], problems: Collector
) -> RawImage | None:
    name = row.get("filename", row.get("file_name"))
    if not is_text(name) or not name.strip():
        return None
    image = RawImage((name.replace("\\", "/"),), where, (row.get("height"), row.get("width")))
    detection, grounding = row.get("detection"), row.get("grounding")
    if isinstance(grounding, dict) and is_text(grounding.get("caption")):
        _read_regions(image, grounding, where, problems)
        return image
    instances = detection.get("instances", []) if isinstance(detection, dict) else None
    if not isinstance(instances, list):
        return None
    for place, instance in enumerate(instances, start=1):
        at = f"{where} instance {place}"
        if not isinstance(instance, dict):
            problems.add("annotation-broken", at)
            continue
        label, category = instance.get("label"), instance.get("category")
        number = (
            label if isinstance(label, int) and not isinstance(label, bool) and abs(label) < 2**31 else None
        )
        if not is_text(category):
            category = known.get(number) if number is not None else None
        elif number is not None:
            numbers.setdefault(category, number)
        image.boxes.append(RawBox(instance.get("bbox"), category, at))
    return image


def _read_regions(image: RawImage, grounding: dict[str, Any], where: str, problems: Collector) -> None:
    """Sort the regions by phrase and take their boxes."""
    image.caption = caption = grounding["caption"]
    numbers: dict[str, int] = {}  # of the phrases
    regions = grounding.get("regions", [])
    for place, region in enumerate(regions if isinstance(regions, list) else [], start=1):
        at = f"{where} region {place}"
        if not isinstance(region, dict):
            problems.add("annotation-broken", at)
            continue
        spans = region.get("tokens_positive")
        if not isinstance(spans, list):
            spans = phrase_spans(caption, region.get("phrase"))
        if not spans:
            told = f"{at} of {image.file_names[0]} ({str(region.get('phrase'))[:40]!r})"
            problems.add("phrase-not-in-caption", told)
            continue
        spans = [spans] if len(spans) == 2 and all(isinstance(end, int) for end in spans) else spans
        try:
            number = numbers.setdefault(json.dumps(spans), len(numbers))
        except (ValueError, RecursionError):
            problems.add("annotation-broken", at)
            continue
        if number == len(image.phrases):
            image.phrases.append(spans)
        box = region.get("bbox", [])
        several = isinstance(box, list) and (not box or any(isinstance(item, list) for item in box))
        image.boxes += [RawBox(four, number, at) for four in (box if several else [box])]


def phrase_spans(caption: str, phrase: Any) -> list[list[int]]:
    """Where a phrase, or each of several, stands in a caption as whole words, whatever the case; nowhere is []."""
    found = []
    for text in phrase if isinstance(phrase, list) else [phrase]:
        if isinstance(text, str) and text.strip():
            words = r"\s+".join(re.escape(word) for word in text.split())
            found += [
                [m.start(), m.end()] for m in re.finditer(rf"(?<!\w){words}(?!\w)", caption, re.IGNORECASE)
            ]
    return sorted(found)


def write_odvg(dataset: Dataset, file_names: Sequence[str], path: Path) -> None:
    """Write one split, and the label map beside it where it has classes; crowd boxes have no form here and are left out.

    Args:
        dataset: of classes, with captions, or of both.
        file_names: of each sample's image, as the file states it.
        path: the file to write.
    """
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
    if sample.grounding is None:
        return {
            "detection": {
                "instances": [{"bbox": box, "label": c, "category": class_names[c]} for box, c in boxes]
            }
        }
    regions = []
    for number, (phrase, spans) in enumerate(
        zip(sample.grounding.phrases, sample.grounding.spans, strict=True)
    ):
        own = [box for box, c in boxes if c == number]
        region = {"phrase": phrase, "tokens_positive": [list(span) for span in spans]}
        regions += [{"bbox": box} | region for box in own] or [{"bbox": []} | region]
    return {"grounding": {"caption": sample.grounding.caption, "regions": regions}}


def raw_tokens_positive(content: Any, json_path: Path) -> RawData:
    """Take the records out of `tokens_positive` content.

    Raises:
        DataError: the content has no such lists, or its list of images is empty.
    """
    images, annotations = coco_lists(content, json_path, ("images", "annotations"))
    problems = collector()
    rows, image_of = raw_images(images, problems)
    numbers: dict[str, dict[str, int]] = {}  # of each image its phrases
    for row, image in zip(rows, image_of.values(), strict=True):
        if not is_text(row.get("caption")):
            problems.add("caption-missing", image.file_names[0])
            continue
        image.caption = row["caption"]
        listed = row.get("tokens_positive_eval")
        for spans in listed if isinstance(listed, list) else []:
            _phrase(image, numbers.setdefault(image.place, {}), spans)
    for image, row, where, crowd in annotations_of(annotations, image_of, problems):
        if image.caption is not None:
            phrase = _phrase(image, numbers.setdefault(image.place, {}), row.get("tokens_positive"))
            image.boxes.append(RawBox(row.get("bbox"), phrase, where, crowd))
    kept = [image for image in image_of.values() if image.caption is not None]
    return RawData(json_path, "xywh", kept, [], problems)


def _phrase(image: RawImage, known: dict[str, int], spans: Any) -> int:
    """The number of a phrase in its image; a new one where the spans are new. Wrong spans are judged later."""
    spans = spans if isinstance(spans, list) and spans else [None]
    key = str(
        [tuple(s) if isinstance(s, list) and all(isinstance(e, int) for e in s) else None for s in spans]
    )
    number = known.setdefault(key, len(known))
    if number == len(image.phrases):
        image.phrases.append(spans)
    return number
