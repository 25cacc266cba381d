"""One measured process: from a JPEG file of 640 x 480 to the normalized tensor of 1066 x 800 that a
network gets.

    python benchmarks/loading.py groundtune
    python benchmarks/loading.py transformers        (in the peers' environment)

The last line is JSON: seconds and cpu_s of one image.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIZE_HW = (480, 640)
IMAGES = 60


def groundtune_loader() -> Callable[[Path], object]:
    from groundtune.contracts import ImageFormat
    from groundtune.data.images import load_image
    from groundtune.data.transforms import resize_keep_ratio, to_tensor

    fmt = ImageFormat((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), short_side=800, max_side=1333)
    view = resize_keep_ratio(SIZE_HW, fmt)
    return lambda path: to_tensor(view.image(load_image(path, SIZE_HW)), fmt)


def transformers_loader() -> Callable[[Path], object]:
    from transformers import GroundingDinoImageProcessorPil

    processor = GroundingDinoImageProcessorPil(size={"shortest_edge": 800, "longest_edge": 1333})
    return lambda path: processor(images=Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]


def main() -> None:
    import torch

    torch.set_num_threads(2)
    load = {"groundtune": groundtune_loader, "transformers": transformers_loader}[sys.argv[1]]()
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)).resize(SIZE_HW[::-1])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        coarse.save(path, quality=90)
        load(path)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(IMAGES):
            load(path)
    found = {"seconds": (time.perf_counter() - wall) / IMAGES, "cpu_s": (time.process_time() - cpu) / IMAGES}
    print(
        json.dumps(found | {"peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)})
    )


if __name__ == "__main__":
    main()
