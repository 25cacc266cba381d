"""Location tokens in JSON lines: fine-tuning data of PaliGemma and Florence-2.

    {"image": "a.jpg", "prefix": "detect cat ; dog", "suffix": "<loc0256>… cat ; …"}
    {"image": "a.jpg", "prefix": "<OD>", "suffix": "cat<loc_250><loc_250><loc_500><loc_500>"}

PaliGemma writes y1 x1 y2 x2 in 1024 parts of the image before a name, Florence-2 x1 y1 x2 y2 in
1000 parts behind it. Names in the prefix are classes too. Segmentation tokens are not used. Rows of
other tasks are dropped. Sources: https://maestro.roboflow.com/develop/datasets/jsonl,
https://ai.google.dev/gemma/docs/paligemma.
"""

import re
from pathlib import Path

from groundtune.data.formats.files import file_evidence, is_text, json_lines
from groundtune.data.formats.records import Evidence, RawBox, RawData, RawImage, centered, classes_by_name
from groundtune.data.formats.tree import Tree

_TASK = re.compile(r"\s*(detect|segment)\b\s*(.*)", re.IGNORECASE | re.DOTALL)
_TOKENS = re.compile(r"(?:<loc_?\d{1,4}>\s*)+")


def recognize(tree: Tree) -> Evidence | None:
    """Recognize JSON lines with `image` and `suffix`, and location tokens."""
    chosen = [
        file
        for file, (form, keys, _) in tree.signatures.items()
        if form in ("lines", "object") and {"image", "suffix"} <= keys and "<loc" in tree.head(file)
    ]
    return file_evidence("paligemma", chosen, tree, _read)


def _read(path: Path) -> RawData:
    raw = RawData(path, "cxcywh", states_size=False)
    listed: dict[str, None] = {}  # names in prefixes
    for where, row in json_lines(path):
        name, suffix = (row.get("image"), row.get("suffix")) if isinstance(row, dict) else (None, None)
        if not is_text(name) or not name.strip() or not is_text(suffix):
            raw.problems.add("annotation-broken", where)
            continue
        prefix = row.get("prefix") if is_text(row.get("prefix")) else ""
        task = _TASK.match(prefix)
        if not task and "<OD>" not in prefix and "<loc" not in suffix:
            raw.problems.add("annotation-broken", f"{where} is not of detection: {prefix[:40]!r}")
            continue
        if task:
            listed |= dict.fromkeys(name.strip() for name in re.split(r"[;\n]", task[2]) if name.strip())
        image = RawImage((name.replace("\\", "/"),), where)
        raw.images.append(image)
        _add_boxes(image, suffix, raw)
    raw.classes += classes_by_name(raw.images, [*listed])
    return raw


def _add_boxes(image: RawImage, suffix: str, raw: RawData) -> None:
    """Add the boxes of a text to its image; tokens that are not four a box are problems."""
    florence = "<loc_" in suffix
    found = [*_TOKENS.finditer(suffix)]
    ends, starts = [0, *(match.end() for match in found)], [*(match.start() for match in found), None]
    for index, match in enumerate(found):
        text = suffix[ends[index] : match.start()] if florence else suffix[match.end() : starts[index + 1]]
        name = re.sub(r"<[^<>]*>", "", text).partition(";")[0].strip()
        numbers = [int(number) for number in re.findall(r"\d+", match[0])]
        if not name or len(numbers) % 4:
            raw.problems.add("annotation-broken", f"{image.where} {match[0][:60]!r} {name[:40]!r}")
            continue
        for at in range(0, len(numbers), 4):
            a, b, c, d = (number / (1000 if florence else 1024) for number in numbers[at : at + 4])
            box = centered([a, b, c, d] if florence else [b, a, d, c])
            image.boxes.append(RawBox(box, name, image.where))
