"""A COCO data set with half of its training labels taken away: `python half_labeled.py DATA OUT`.

OUT/labeled has every second training image with its boxes, OUT/all has all of them, the others without a box. Both have
DATA's split valid. The images are linked.
"""

import json
import sys
from pathlib import Path

data, out = map(Path, sys.argv[1:])
for part in ("labeled", "all"):
    for split in ("train", "valid"):
        content = json.loads((data / split / "_annotations.coco.json").read_text())
        kept = content["images"][:: 2 if split == "train" else 1]
        ids = {image["id"] for image in kept}
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]
        content["images"] = kept if part == "labeled" else content["images"]
        (out / part / split).mkdir(parents=True)
        (out / part / split / "_annotations.coco.json").write_text(json.dumps(content))
        for image in content["images"]:
            (out / part / split / image["file_name"]).symlink_to(
                (data / split / image["file_name"]).resolve()
            )
