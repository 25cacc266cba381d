"""Samples of a data set, made of plain lists."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groundtune.data.sample import Sample


def made_sample(
    boxes_xyxy: Any = (),
    class_ids: Sequence[int] = (),
    crowd: Sequence[bool] | None = None,
    *,
    path: str | Path = "a.png",
    image_id: int = 1,
    size_hw: tuple[int, int] = (100, 100),
) -> Sample:
    return Sample(
        image_path=Path(path),
        image_id=image_id,
        size_hw=size_hw,
        boxes_xyxy=np.array(boxes_xyxy, np.float32).reshape(-1, 4),
        class_ids=np.array(class_ids, np.int64),
        crowd=np.array([False] * len(class_ids) if crowd is None else crowd, bool),
    )
