"""`evaluate` on Ray workers: the same prompts, batches and metrics."""

from dataclasses import dataclass, replace
from functools import cached_property

from groundtune.data.sample import Dataset, Sample
from groundtune.device import pick_device, pick_precision
from groundtune.engine.evaluate import EvalTask, Evaluation, ImageResult, eval_task, score_results
from groundtune.predict.ray import RayPool, on_ray, pack, unpack
from groundtune.progress import Progress


@dataclass
class _PredictBatch:
    """The work of a Ray worker: the results of one batch of images."""

    model: dict[str, bytes]
    dataset: Dataset  # with one image only
    class_indices: list[int]
    device: str
    precision: str

    @cached_property
    def task(self) -> EvalTask:
        precision = pick_precision(self.precision, pick_device(self.device))
        return eval_task(unpack(self.model), self.dataset, self.class_indices, precision)

    def __call__(self, samples: list[Sample]) -> dict[int, ImageResult]:
        batch = replace(self.dataset, samples=samples)
        return self.task.predict_dataset(batch, len(samples), pick_device(self.device))


def evaluate_on_ray(
    task: EvalTask,
    dataset: Dataset,
    pool: RayPool,
    *,
    batch_size: int,
    device: str,
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate on Ray workers, each of which resolves `device` and the precision "auto" for itself.

    Errors are those of `on_ray`, and a `DataError` that names an unreadable image.
    """
    samples = [replace(sample, image_path=sample.image_path.absolute()) for sample in dataset.samples]
    batches = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    small = replace(dataset, samples=samples[:1])
    work = _PredictBatch(pack(task.bundle), small, task.class_indices, device, task.precision)
    results: dict[int, ImageResult] = {}
    for number, of_batch in on_ray(work, batches, pool):
        results |= {number * batch_size + index: result for index, result in of_batch.items()}
        if progress is not None:
            progress.evaluation(len(results), len(samples))
    return score_results(dataset, task.class_indices, results, {})
