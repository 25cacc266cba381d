"""Location tokens in JSON lines: fine-tuning data of PaliGemma and Florence-2.

    {"image": "a.jpg", "prefix": "detect cat ; dog", "suffix": "<loc0256>… cat ; …"}
    {"image": "a.jpg", "prefix": "<OD>", "suffix": "cat<loc_250><loc_250><loc_500><loc_500>"}

PaliGemma writes y1 x1 y2 x2 in 1024 parts of the image before a name, Florence-2 x1 y1 x2 y2 in
1000 parts behind it. Names in the prefix are classes too. Segmentation tokens are not used. Rows of
other tasks are dropped. Sources: https://maestro.roboflow.com/develop/datasets/jsonl,
https://ai.google.dev/gemma/docs/paligemma.
"""

import json
import re
from pathlib import Path

from groundtune.data.formats.files import files_by_split, image_folders, is_text
from groundtune.data.formats.records import Evidence, RawBox, RawData, RawImage, Source, classes_by_name
from groundtune.data.formats.tree import Tree
from groundtune.files import read_text

_TASK = re.compile(r"\s*(detect|segment)\b\s*(.*)", re.IGNORECASE | re.DOTALL)
_OF_PALIGEMMA = re.compile(r"((?:<loc\d{4}>\s*)+)(?:<seg\d{3}>\s*)*([^<;]*)")
_OF_FLORENCE = re.compile(r"([^<>]*)((?:<loc_\d{1,4}>\s*)+)")


def recognize(tree: Tree) -> Evidence | None:
    """Recognize JSON lines with `image` and `suffix`, and location tokens."""
    chosen = [
        file
        for file, (form, keys, _) in tree.signatures.items()
        if form in ("lines", "object") and {"image", "suffix"} <= keys and "<loc" in tree.head(file)
    ]
    if not chosen:
        return None
    sources, refused = files_by_split(chosen, lambda file: _source(tree, file), tree)
    return Evidence("paligemma", 2, sources, refused, chosen[0])


def _source(tree: Tree, file: str) -> Source:
    return Source(tree.root / file, image_folders(tree, file), _read)


def _read(path: Path) -> RawData:
    raw = RawData(path, "cxcywh", states_size=False)
    asked: dict[str, None] = {}  # names in prefixes
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        name = row.get("image") if isinstance(row, dict) else None
        if not is_text(name) or not name.strip() or not is_text(suffix := row.get("suffix")):
            raw.problems.add("annotation-broken", where)
            continue
        prefix = row.get("prefix") if is_text(row.get("prefix")) else ""
        task = _TASK.match(prefix)
        if not task and "<OD>" not in prefix and "<loc" not in suffix:
            raw.problems.add("annotation-broken", f"{where} is not of detection: {prefix[:40]!r}")
            continue
        if task:
            asked |= dict.fromkeys(name.strip() for name in re.split(r"[;\n]", task[2]) if name.strip())
        image = RawImage((name.replace("\\", "/"),), where)
        raw.images.append(image)
        _add_boxes(image, suffix, raw)
    raw.classes += classes_by_name(raw.images, [*asked])
    return raw


def _add_boxes(image: RawImage, suffix: str, raw: RawData) -> None:
    """Add the boxes of a text to its image; tokens that are not four a box are problems."""
    if florence := "<loc_" in suffix:
        found = [(name, tokens) for name, tokens in _OF_FLORENCE.findall(suffix)]
    else:
        found = [(name, tokens) for tokens, name in _OF_PALIGEMMA.findall(suffix)]
    for name, tokens in found:
        numbers = [int(number) for number in re.findall(r"\d+", tokens)]
        if not name.strip() or len(numbers) % 4:
            raw.problems.add("annotation-broken", f"{image.where} {name.strip()[:40]!r} {tokens[:60]!r}")
            continue
        for at in range(0, len(numbers), 4):
            parts = [number / (1000 if florence else 1024) for number in numbers[at : at + 4]]
            x1, y1, x2, y2 = parts if florence else (parts[1], parts[0], parts[3], parts[2])
            box = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
            image.boxes.append(RawBox(box, name.strip(), image.where))
