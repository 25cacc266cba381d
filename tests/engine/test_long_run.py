"""A day in small: memory and open files do not grow with the steps."""

from pathlib import Path

import numpy as np
import psutil
import pytest
from engine_runs import Recorder, options, run, scenes, tiny_bundle

_WARM = 500  # steps after which every size has been met


class Watcher(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.measured: list[tuple[int, int, int]] = []  # step, bytes, open files

    def step(self, done: int, losses: dict[str, float], lr: float, memory_bytes: int) -> None:
        if done > _WARM and done % 10 == 0:
            process = psutil.Process()
            self.measured.append((done, process.memory_info().rss, process.num_fds()))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_and_open_files_do_not_grow(tmp_path: Path, tokenizer, workers: int) -> None:
    data = scenes(tmp_path / "data", train=20, valid=2)
    watcher = Watcher()
    config = options(
        data, epochs=200, eval_epochs=20, save_steps=100, log_steps=10, ema_decay=0.9, workers=workers
    )
    run(config, tiny_bundle(tokenizer), tmp_path / "run", watcher)
    steps, sizes, files = np.array(watcher.measured).T
    slope = np.polyfit(steps, sizes, 1)[0] * 100 / 2**20
    print(f"{slope:+.3f} MB per 100 steps, {files.min()} to {files.max()} open files")
    assert len(steps) == 150 and steps[-1] == 2000
    assert slope < 1
    assert np.median(files[-50:]) <= np.median(files[:50])
