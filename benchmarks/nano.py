"""One measured process: seconds until the model nano is loaded, and of one prediction on an image
of 640 x 640.

The last line is JSON.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    import groundtune

    begin = time.perf_counter()
    model = groundtune.load("nano")
    loading = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.jpg"
        coarse = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((640, 640)).save(image)
        walls, cpus = [], []
        for _ in range(6):
            wall, cpu = time.perf_counter(), time.process_time()
            model.predict(str(image), ["red ring", "cat", "blue star"])
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    found = {"load_s": loading, "first_s": walls[0], "seconds": statistics.median(walls[1:])}
    print(json.dumps(found | {"cpu_s": statistics.median(cpus[1:])}))


if __name__ == "__main__":
    main()
