"""`evaluate` with its batches shared out among Ray's workers: the same questions, the same batches, the same score."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from groundtune.data.sample import Dataset, Sample
from groundtune.device import pick_device, pick_precision
from groundtune.engine.evaluate import EvalTask, Evaluation, ImageResult, ask, scored
from groundtune.model.bundle import ModelBundle
from groundtune.predict.ray import RayPool, on_ray, pack, unpack
from groundtune.progress import Progress


@dataclass
class _Batch:
    """The work of an actor: the answers for one batch of images."""

    model: dict[str, bytes]
    frame: Dataset  # with one image
    class_indices: Sequence[int] | None
    device: str
    precision: str

    @cached_property
    def questions(self) -> EvalTask:
        precision = pick_precision(self.precision, pick_device(self.device))
        return ask(unpack(self.model), self.frame, self.class_indices, precision)

    def __call__(self, samples: list[Sample]) -> dict[int, ImageResult]:
        own = replace(self.frame, samples=samples)
        return self.questions.answers(own, len(samples), pick_device(self.device))


def evaluate_on_ray(
    bundle: ModelBundle,
    dataset: Dataset,
    pool: RayPool,
    *,
    class_indices: Sequence[int] | None = None,
    batch_size: int = 8,
    device: str = "auto",
    precision: str = "fp32",
    progress: Progress | None = None,
) -> Evaluation:
    """As `evaluate`; each worker picks `device`, and for precision "auto" what that computes in, for itself.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
        DataError: as `evaluate`; an image that a worker cannot read is named.
    """
    ask(bundle, dataset, class_indices)  # what is wrong is told before anything is started
    samples = [replace(sample, image_path=sample.image_path.absolute()) for sample in dataset.samples]
    batches = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]
    answers: dict[int, ImageResult] = {}
    work = _Batch(pack(bundle), replace(dataset, samples=samples[:1]), class_indices, device, precision)
    for number, found in on_ray(work, batches, pool):
        answers |= {number * batch_size + place: answer for place, answer in found.items()}
        if progress is not None:
            progress.evaluation(len(answers), len(samples))
    return scored(dataset, class_indices, answers, {})
