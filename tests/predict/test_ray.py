"""Ray workers give the results of one process, also if one of them is killed; errors reach the
caller.
"""

import json
import os
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from engine_runs import Recorder, evaluated, scenes, tiny_bundle

from groundtune import api
from groundtune.cli import main
from groundtune.data.formats.detect import load_splits
from groundtune.data.sample import Dataset
from groundtune.data.scenes import write_captioned_scenes
from groundtune.engine.evaluate import Evaluation, eval_task
from groundtune.engine.ray_evaluation import evaluate_on_ray
from groundtune.errors import ConfigError, DataError, GroundtuneError
from groundtune.model.bundle import ModelBundle
from groundtune.predict import ray as ray_stream
from groundtune.predict.ray import RayPool, connect, import_ray, on_ray

POOL = RayPool("local", workers=3, threads=0, gpus=False)


def test_a_missing_ray_names_the_extra(tmp_path: Path, monkeypatch, tokenizer, capsys) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    data = scenes(tmp_path / "data", train=1, valid=1)
    with pytest.raises(ConfigError) as error:
        api.evaluate(api.Model(tiny_bundle(tokenizer)), data, ray="local")
    assert str(error.value) == 'ray: not installed. Install it: pip install "groundtune[ray]".'


@pytest.fixture(scope="module")
def ray():
    """Ray on this machine with three CPUs, whatever it has; evaluations of this file share it."""
    pytest.importorskip("ray", reason='needs the extra: pip install "groundtune[ray]"')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the workers: the last bits depend on it
    ray = import_ray()
    connect(ray, POOL)
    yield ray
    ray.shutdown()
    torch.set_num_threads(threads)


def on_workers(bundle: ModelBundle, data: Dataset, **given: Any) -> Evaluation:
    return evaluate_on_ray(eval_task(bundle, data, None, "fp32"), data, POOL, device="cpu", **given)


def workers() -> list[psutil.Process]:
    """The processes that Ray Data's actors run in."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any("MapWorker" in word for word in child.cmdline())]


class Killer(Recorder):
    """Kills a worker when the first batch is done."""

    killed: int | None = None

    def evaluation(self, done: int, total: int) -> None:
        super().evaluation(done, total)
        if self.killed is None:
            self.killed = workers()[0].pid
            os.kill(self.killed, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "captions"])
def test_workers_evaluate_to_the_same_bits(tmp_path: Path, tokenizer, ray, kind: str) -> None:
    data = read(tmp_path, kind, 7)
    bundle = tiny_bundle(tokenizer)
    alone = evaluated(bundle, data, batch_size=2)
    watcher = Recorder()
    found = on_workers(bundle, data, batch_size=2, progress=watcher)
    assert found == alone and len(found.predictions) > 10
    assert watcher.events[-1] == ("evaluation", 7) and len(watcher.events) == 4


@pytest.mark.slow
def test_the_jobs_of_a_killed_worker_are_repeated(tmp_path: Path, tokenizer, ray) -> None:
    data = read(tmp_path, "classes", 60)
    bundle, killer = tiny_bundle(tokenizer), Killer()
    alone = evaluated(bundle, data, batch_size=1)
    found = on_workers(bundle, data, batch_size=1, progress=killer)
    assert killer.killed is not None and not psutil.pid_exists(killer.killed)
    assert found == alone


def read(folder: Path, kind: str, images: int) -> Dataset:
    if kind == "captions":
        write_captioned_scenes(folder / "data", train=1, valid=images, size=64, seed=0)
        return load_splits(folder / "data")["valid"]
    return load_splits(scenes(folder / "data", train=1, valid=images))["valid"]


@pytest.mark.slow
def test_an_image_that_a_worker_cannot_read_is_named(tmp_path: Path, tokenizer, ray) -> None:
    data = read(tmp_path, "classes", 3)
    data.samples[1].image_path.write_bytes(b"no image")
    with pytest.raises(DataError, match=data.samples[1].image_path.name):
        on_workers(tiny_bundle(tokenizer), data, batch_size=1)


@dataclass
class Deadly:
    """Kills its process, as the system does with one that takes too much memory."""

    def __call__(self, job: int) -> int:
        if job == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return job


@pytest.mark.slow
def test_a_job_that_kills_every_worker_is_not_repeated_forever(ray, monkeypatch) -> None:
    from ray import cloudpickle

    monkeypatch.setattr(ray_stream, "_RETRIES", 1)

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.raises(GroundtuneError, match="ray: workers failed"):
        list(on_ray(Deadly(), range(4), POOL))


@pytest.mark.slow
def test_labeling_gives_the_same_data_set_and_names_what_cannot_be_read(
    tmp_path: Path, tokenizer, ray
) -> None:
    images = scenes(tmp_path / "data", train=5, valid=1) / "train"
    (images / "broken.jpg").write_bytes(b"no image")
    bundle = tiny_bundle(tokenizer)
    bundle.source = "tiny"
    given = {"classes": ["red circle", "cat"], "threshold": 0.0, "batch_size": 2, "device": "cpu"}
    for out, more in (("alone", {}), ("shared", {"ray": "local", "ray_workers": 3})):
        done = api.label(
            api.Model(bundle, "cpu", "fp32"), [images], output_dir=tmp_path / out, **given, **more
        )
        assert [Path(path).name for path in done.unreadable] == ["broken.jpg"]
        assert done.written.images == {"train": 5} and done.written.boxes["train"] > 5
    written = [
        json.loads((tmp_path / out / "train/_annotations.coco.json").read_text())
        for out in ("alone", "shared")
    ]
    boxes = [
        sorted((row["image_id"], row["bbox"], row["score"]) for row in one["annotations"]) for one in written
    ]
    assert boxes[0] == boxes[1]


@pytest.mark.slow
def test_no_cluster_at_the_address() -> None:
    ray = pytest.importorskip("ray", reason='needs the extra: pip install "groundtune[ray]"')
    ray.shutdown()  # the one of the tests above would be used instead
    with pytest.raises(ConfigError, match="ray: no cluster at '127.0.0.1:1'"):
        list(on_ray(len, [[]], RayPool("127.0.0.1:1", workers=0, threads=0, gpus=False)))


@pytest.mark.slow
def test_from_the_command_line(tmp_path: Path, capfd, monkeypatch) -> None:
    """Nothing but the table on stdout, and nothing but progress on stderr."""
    pytest.importorskip("ray", reason='needs the extra: pip install "groundtune[ray]"')
    import ray

    ray.shutdown()
    data = str(scenes(tmp_path / "data", train=1, valid=3))
    line: list[Any] = ["evaluate", "nano", data, "--batch-size", "1", "--device", "cpu", "--threads", "1"]
    assert main(line) == 0
    alone = capfd.readouterr().out
    assert main([*line, "--ray", "local", "--ray-workers", "3"]) == 0
    printed, progress = capfd.readouterr()
    assert printed == alone and not ray.is_initialized()
    assert [line for line in progress.splitlines() if not re.fullmatch(r"evaluating \d/3 images", line)] == []
