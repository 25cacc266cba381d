"""`tokens_positive` JSON, the form of MDETR's and GLIP's Flickr30k: COCO's lists, with a caption for each of the `images` and
character spans for each of the `annotations` in place of a category.

A phrase is a set of spans; boxes with the same spans are boxes of one phrase. `tokens_positive_eval` of a picture lists its
phrases, those without a box too. The same picture file may stand there once per caption.
"""

from pathlib import Path
from typing import Any

from groundtune.data.formats.coco import annotations_of, coco_lists, identity, raw_pictures
from groundtune.data.formats.raw import RawBox, RawCaption, RawData, RawPicture, collector, is_text


def raw_tokens_positive(content: Any, json_path: Path) -> RawData:
    """Take the records out of `tokens_positive` content.

    Raises:
        DataError: the content has no such lists, or its list of pictures is empty.
    """
    images, annotations = coco_lists(content, json_path, ("images", "annotations"))
    problems = collector()
    pictures, picture_of = raw_pictures(images, problems)
    phrases: dict[int, dict[str, int]] = {}
    for image in images:
        picture = picture_of.get(identity(image.get("id")) or "") if isinstance(image, dict) else None
        if picture is None or picture.caption is not None or not is_text(image.get("caption")):
            continue
        picture.caption = RawCaption(image["caption"], [])
        phrases[id(picture)] = {}
        listed = image.get("tokens_positive_eval")
        for spans in listed if isinstance(listed, list) else []:
            _phrase(picture, phrases[id(picture)], spans)
    for where, row, picture in annotations_of(annotations, picture_of, problems):
        if picture.caption is not None:
            phrase = _phrase(picture, phrases[id(picture)], row.get("tokens_positive"))
            crowd = row.get("iscrowd") in (1, True, "1")
            picture.boxes.append(RawBox(row.get("bbox"), phrase, where, crowd))
    for picture in pictures:
        if picture.caption is None:
            problems.add("caption-missing", picture.file_names[0])
    kept = [picture for picture in pictures if picture.caption is not None]
    return RawData(json_path, "xywh", kept, [], problems)


def _phrase(picture: RawPicture, known: dict[str, int], spans: Any) -> int:
    """The number of a phrase in its picture; a new one where the spans are new. Wrong spans are judged later."""
    assert picture.caption is not None
    spans = spans if isinstance(spans, list) and spans else [None]
    key = str([tuple(s) if isinstance(s, list) and all(isinstance(e, int) for e in s) else None for s in spans])
    number = known.setdefault(key, len(known))
    if number == len(picture.caption.phrases):
        picture.caption.phrases.append(spans)
    return number
