"""Plays the person at `groundtune review` where the true boxes are known: `python reviewed.py LABELED TRUTH`.

Both are COCO data sets; the boxes with a score in LABELED's split train are looked through. One that lies on a true box of the
same image (IoU of 0.5 or more, each true box once, the surest first) is accepted, under the true box's name; all others are
rejected. Nothing is added and no box is moved.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from groundtune.boxes import pairwise_iou, xywh_to_xyxy

labeled, truth = (Path(path) / "train" / "_annotations.coco.json" for path in sys.argv[1:])
content, true = json.loads(labeled.read_text()), json.loads(truth.read_text())
names = {row["id"]: row["name"] for row in true["categories"]}
ids = {row["name"]: row["id"] for row in content["categories"]}
images = {Path(row["file_name"]).name: row["id"] for row in true["images"]}
kept, counts = (
    [row for row in content["annotations"] if "score" not in row],
    {"accepted": 0, "renamed": 0, "rejected": 0},
)
for image in content["images"]:
    drawn = [row for row in content["annotations"] if row["image_id"] == image["id"] and "score" in row]
    real = [row for row in true["annotations"] if row["image_id"] == images[Path(image["file_name"]).name]]
    boxes, others = (
        xywh_to_xyxy(torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)) for rows in (drawn, real)
    )
    overlap = pairwise_iou(boxes.float(), others.float()).numpy()
    for place in sorted(range(len(drawn)), key=lambda place: -drawn[place]["score"]):
        best = int(np.argmax(overlap[place])) if real else -1
        if best < 0 or overlap[place, best] < 0.5:
            counts["rejected"] += 1
            continue
        overlap[:, best] = -1
        row = {name: value for name, value in drawn[place].items() if name != "score"}
        category = ids[names[real[best]["category_id"]].lower().replace("_", " ")]
        counts["accepted" if category == row["category_id"] else "renamed"] += 1
        kept.append(row | {"category_id": category})
content["annotations"] = kept
labeled.write_text(json.dumps(content))
print(counts)
