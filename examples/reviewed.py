"""Review the labels of a model automatically, with known true labels: `python reviewed.py LABELED
TRUTH`.

Both are COCO data sets. The boxes with a score in LABELED's split train are reviewed. A box is
accepted, with the class of the true box, if it matches a true box of the same image with an IoU of
0.5 or more. Each true box is matched once, with the highest score first. All other boxes are
rejected. No box is added or moved.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

from groundtune.boxes import pairwise_iou, xywh_to_xyxy


def boxes_of(rows: list[dict]) -> torch.Tensor:
    """Return the boxes of COCO annotations as xyxy, (N, 4) float32."""
    return xywh_to_xyxy(torch.tensor([row["bbox"] for row in rows]).reshape(-1, 4)).float()


labeled_path, true_path = (Path(path) / "train" / "_annotations.coco.json" for path in sys.argv[1:])
labeled, true = json.loads(labeled_path.read_text()), json.loads(true_path.read_text())
true_names = {row["id"]: row["name"] for row in true["categories"]}
category_ids = {row["name"]: row["id"] for row in labeled["categories"]}
true_image_ids = {Path(row["file_name"]).name: row["id"] for row in true["images"]}
reviewed = [row for row in labeled["annotations"] if "score" not in row]
counts = {"accepted": 0, "renamed": 0, "rejected": 0}
for image in labeled["images"]:
    true_id = true_image_ids[Path(image["file_name"]).name]
    rows = [row for row in labeled["annotations"] if row["image_id"] == image["id"] and "score" in row]
    true_rows = [row for row in true["annotations"] if row["image_id"] == true_id]
    iou = pairwise_iou(boxes_of(rows), boxes_of(true_rows)).numpy()
    for index in sorted(range(len(rows)), key=lambda index: -rows[index]["score"]):
        best = int(np.argmax(iou[index])) if true_rows else -1
        if best < 0 or iou[index, best] < 0.5:
            counts["rejected"] += 1
            continue
        iou[:, best] = -1  # matched
        row = {name: value for name, value in rows[index].items() if name != "score"}
        category_id = category_ids[true_names[true_rows[best]["category_id"]].lower().replace("_", " ")]
        counts["accepted" if category_id == row["category_id"] else "renamed"] += 1
        reviewed.append(row | {"category_id": category_id})
labeled["annotations"] = reviewed
labeled_path.write_text(json.dumps(labeled))
print(counts)
