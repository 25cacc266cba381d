"""Remove the labels of half of the training images: `python half_labeled.py DATA OUT`.

DATA is a COCO data set with the splits train and valid. OUT/labeled gets every second training
image with its boxes. OUT/all gets all training images; the other half has no boxes. Both get the
split valid. The images are linked.
"""

import json
import sys
from pathlib import Path

data, out = map(Path, sys.argv[1:])
for part in ("labeled", "all"):
    for split in ("train", "valid"):
        content = json.loads((data / split / "_annotations.coco.json").read_text())
        labeled = content["images"][:: 2 if split == "train" else 1]
        ids = {image["id"] for image in labeled}
        content["annotations"] = [row for row in content["annotations"] if row["image_id"] in ids]
        content["images"] = labeled if part == "labeled" else content["images"]
        (out / part / split).mkdir(parents=True)
        (out / part / split / "_annotations.coco.json").write_text(json.dumps(content))
        for image in content["images"]:
            source = (data / split / image["file_name"]).resolve()
            (out / part / split / image["file_name"]).symlink_to(source)
