"""`tokens_positive` JSON, the form of MDETR's and GLIP's Flickr30k: COCO's lists, with a caption for each of the `images` and
character spans for each of the `annotations` in place of a category.

A phrase is a set of spans; boxes with the same spans are boxes of one phrase. `tokens_positive_eval` of a picture lists its
phrases, those without a box too. The same picture file may stand there once per caption.
"""

from pathlib import Path
from typing import Any

from groundtune.data.formats.coco import annotations_of, coco_lists, raw_pictures
from groundtune.data.formats.files import is_text
from groundtune.data.formats.raw import RawBox, RawData, RawPicture, collector


def raw_tokens_positive(content: Any, json_path: Path) -> RawData:
    """Take the records out of `tokens_positive` content.

    Raises:
        DataError: the content has no such lists, or its list of pictures is empty.
    """
    images, annotations = coco_lists(content, json_path, ("images", "annotations"))
    problems = collector()
    rows, picture_of = raw_pictures(images, problems)
    numbers: dict[str, dict[str, int]] = {}  # of each picture its phrases
    for row, picture in zip(rows, picture_of.values(), strict=True):
        if not is_text(row.get("caption")):
            problems.add("caption-missing", picture.file_names[0])
            continue
        picture.caption = row["caption"]
        listed = row.get("tokens_positive_eval")
        for spans in listed if isinstance(listed, list) else []:
            _phrase(picture, numbers.setdefault(picture.place, {}), spans)
    for picture, row, where, crowd in annotations_of(annotations, picture_of, problems):
        if picture.caption is not None:
            phrase = _phrase(picture, numbers.setdefault(picture.place, {}), row.get("tokens_positive"))
            picture.boxes.append(RawBox(row.get("bbox"), phrase, where, crowd))
    kept = [picture for picture in picture_of.values() if picture.caption is not None]
    return RawData(json_path, "xywh", kept, [], problems)


def _phrase(picture: RawPicture, known: dict[str, int], spans: Any) -> int:
    """The number of a phrase in its picture; a new one where the spans are new. Wrong spans are judged later."""
    spans = spans if isinstance(spans, list) and spans else [None]
    key = str([tuple(s) if isinstance(s, list) and all(isinstance(e, int) for e in s) else None for s in spans])
    number = known.setdefault(key, len(known))
    if number == len(picture.phrases):
        picture.phrases.append(spans)
    return number
