"""A validation split where a data set has none: stratified by class, by seed, and the same in each run.

The choice depends on the file names and the classes alone. Every class that is in two or more images is on both sides
where that can be (it may hold out more than the share asked for, but never over half), no class is taken from training
altogether, and rare classes are dealt out first (iterative stratification, Sechidis et al. 2011).
"""

import random
from collections import defaultdict
from dataclasses import replace

from groundtune.data.problems import Finding
from groundtune.data.sample import Dataset

_FIX = "Add a validation split of your own to choose by which images the model is judged."


def hold_out(dataset: Dataset, share: float = 0.2, seed: int = 0) -> dict[str, Dataset]:
    """Split one data set into "train" and "valid", in place of a validation split that does not exist.

    Args:
        dataset: the images; shrinks to those that stay for training, and has a finding about it. One stays whole.
        share: about this share of the images goes to "valid", at least one.
        seed: of the choice.
    """
    count = len(dataset.samples)
    if count < 2:
        message = "no validation images, and a single image cannot be split."
        dataset.findings.append(Finding("split-made", "warning", message, _FIX, count))
        return {"train": dataset}
    held = _choose(dataset, max(1, round(share * count)), share, seed)
    message = (
        f"no validation split found: {len(held)} of {count} images were held out as 'valid' (stratified by class, seed "
        f"{seed}), {count - len(held)} are left for training."
    )
    valid = replace(
        dataset,
        name="valid",
        class_names=list(dataset.class_names),
        category_ids=list(dataset.category_ids),
        samples=[sample for i, sample in enumerate(dataset.samples) if i in held],
        findings=[],
    )
    dataset.samples = [sample for i, sample in enumerate(dataset.samples) if i not in held]
    dataset.findings.append(Finding("split-made", "note", message, _FIX, len(held)))
    return {"train": dataset, "valid": valid}


def _choose(dataset: Dataset, wanted: int, share: float, seed: int) -> set[int]:
    order = sorted(range(len(dataset.samples)), key=lambda i: str(dataset.samples[i].image_path))
    random.Random(seed).shuffle(order)
    classes_of: dict[int, list[int]] = {}
    images_of: dict[int, list[int]] = defaultdict(list)
    for i in order:
        sample = dataset.samples[i]
        own = set() if sample.grounding is not None else set(sample.class_ids[~sample.crowd].tolist())
        classes_of[i] = sorted(own) or [-1]  # images without a box are a kind of their own
        for c in classes_of[i]:
            images_of[c].append(i)
    rarest_first = sorted(images_of, key=lambda c: (len(images_of[c]), c))
    left = {c: len(images) for c, images in images_of.items()}  # that stay for training
    held: set[int] = set()

    def hold(c: int, number: int, limit: int) -> None:
        for i in images_of[c]:
            if len(images_of[c]) - left[c] >= number or len(held) >= limit:
                return
            if i not in held and all(left[other] > 1 for other in classes_of[i]):
                held.add(i)
                for other in classes_of[i]:
                    left[other] -= 1

    for c in rarest_first:
        if c >= 0 and len(images_of[c]) > 1:
            hold(c, 1, len(order) // 2)  # each class once; this may go beyond the share
    for c in rarest_first:
        hold(c, round(share * len(images_of[c])), wanted)
    for c in sorted(images_of, key=lambda c: (-left[c], c)):  # what rounding left over
        hold(c, len(images_of[c]), wanted)
    return held or {order[0]}  # where every image has a class of its own
