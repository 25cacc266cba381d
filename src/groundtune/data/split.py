"""Hold out a validation split from training images if a data set has none.

The choice depends on file names, classes and the seed only. Every class of two or more images is on
both sides if possible, which may need more images than the share, but never over half of them. Rare
classes are assigned first (iterative stratification, Sechidis et al., 2011).
"""

import random
from collections import defaultdict
from dataclasses import replace

from groundtune.data.problems import Finding
from groundtune.data.sample import Dataset

_SHARE = 0.2  # of the images
_FIX = "Add a validation split to choose the images of the evaluation yourself."


def hold_out(dataset: Dataset, seed: int) -> dict[str, Dataset]:
    """Split one data set into "train" and "valid"; a single image stays "train".

    The data set keeps the images of "train", and gets a finding about the split. About a fifth of
    the images, at least one, are "valid".
    """
    count = len(dataset.samples)
    if count < 2:
        message = "no validation images, and a single image cannot be split."
        dataset.findings.append(Finding("split-made", "warning", message, _FIX, count))
        return {"train": dataset}
    held = _choose(dataset, seed)
    message = (
        f"no validation split found: {len(held)} of {count} images were held out as 'valid' (stratified by "
        f"class, seed {seed}), {count - len(held)} are left for training."
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


def _choose(dataset: Dataset, seed: int) -> set[int]:
    """Choose images, by index."""
    wanted = max(1, round(_SHARE * len(dataset.samples)))
    order = sorted(range(len(dataset.samples)), key=lambda i: str(dataset.samples[i].image_path))
    random.Random(seed).shuffle(order)
    classes_of: dict[int, list[int]] = {}
    images_of: dict[int, list[int]] = defaultdict(list)
    for i in order:
        sample = dataset.samples[i]
        classes = set() if sample.grounding is not None else set(sample.class_ids[~sample.crowd].tolist())
        classes_of[i] = sorted(classes) or [-1]  # images without boxes are a class of their own
        for c in classes_of[i]:
            images_of[c].append(i)
    rarest_first = sorted(images_of, key=lambda c: (len(images_of[c]), c))
    left = {c: len(images) for c, images in images_of.items()}  # for training
    held: set[int] = set()

    def hold(c: int, number: int, limit: int) -> None:
        """Hold out up to `number` images of a class; no class loses its last training image."""
        for i in images_of[c]:
            if len(images_of[c]) - left[c] >= number or len(held) >= limit:
                return
            if i not in held and all(left[other] > 1 for other in classes_of[i]):
                held.add(i)
                for other in classes_of[i]:
                    left[other] -= 1

    for c in rarest_first:
        if c >= 0 and len(images_of[c]) > 1:
            hold(c, 1, len(order) // 2)  # every class once, even beyond the share
    for c in rarest_first:
        hold(c, round(_SHARE * len(images_of[c])), wanted)
    for c in sorted(images_of, key=lambda c: (-left[c], c)):  # the rest of rounding
        hold(c, len(images_of[c]), wanted)
    return held or {order[0]}  # none, if every image has a class of its own
