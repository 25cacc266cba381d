"""What fits into memory: the batch of `--batch-size auto`, and cached features.

The batch is the largest whose training step fits the memory of a GPU. Steps run on blank images of
the largest canvas, with the prompts of the image that has the most boxes. The memory of AdamW's two
moments and of the EMA is reserved meanwhile, and as much as one of them for what other steps need
besides. No weight and no random generator changes.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor
from torch.optim import Optimizer

from groundtune.config import TrainConfig
from groundtune.data.loader import TrainLoader
from groundtune.data.sample import Dataset
from groundtune.data.transforms import resize_keep_ratio
from groundtune.device import autocast, free_memory, is_out_of_memory, release_memory
from groundtune.engine import checkpoint
from groundtune.engine.distributed import from_main, share
from groundtune.loss.criterion import BatchCounts, GroundingDINOCriterion, total
from groundtune.model.bundle import ModelBundle
from groundtune.model.detector import GroundingDINO
from groundtune.predict.features import FeatureCache

_CACHE_SHARES = {"cuda": 0.2, "cpu": 0.4}  # share of a device's free memory for cached features
OVERCOMMITTED = {"cpu"}  # devices that do not report the end of their memory


def fit_batch_size(
    config: TrainConfig,
    bundle: ModelBundle,
    build_loader: Callable[[TrainConfig], TrainLoader],
    optimizer: Optimizer,
    criterion: GroundingDINOCriterion,
) -> tuple[TrainConfig, str]:
    """Resolve the batch size "auto" (0); return the options and a message.

    The learning rate is that of the recipe's batch size, and grows with the square root of the
    size: so AdamW's updates keep their noise. On a CPU the batch size is the recipe's.
    """
    if config.batch_size:
        return config, ""
    before, lr = bundle.recipe.get("batch_size", TrainConfig.batch_size), config.optimizer.lr
    network, loader = bundle.detector, build_loader(replace(config, batch_size=before))
    if next(network.parameters()).device.type in OVERCOMMITTED:
        why = "on a CPU more is not faster, and too much ends the process without an error"
        return replace(config, batch_size=before), f" Batch size {before}: {why}."
    state = checkpoint.random_state()
    own = largest_fitting(
        lambda images: _fits(config, network, loader, criterion, images),
        math.ceil(len(loader.dataset.samples) / loader.processes),
    )
    checkpoint.set_random_state(state)
    batch_size = min(share(own)) * loader.processes
    factor = math.sqrt(batch_size / before)
    for group in optimizer.param_groups:
        group["lr"] *= factor
    config = replace(config, batch_size=batch_size, optimizer=replace(config.optimizer, lr=lr * factor))
    message = f"learning rate {lr * factor:.3g}, which is {lr:g} × √({batch_size} / {before})"
    return config, f" Batch size {batch_size}: the most that fits; {message}."


def largest_fitting(fits: Callable[[int], bool], most: int) -> int:
    """Return the largest number from 1 to `most` that fits; 1 if none does."""
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return max(1, low)


def _fits(
    config: TrainConfig,
    network: GroundingDINO,
    loader: TrainLoader,
    criterion: GroundingDINOCriterion,
    images: int,
) -> bool:
    """Return whether forward and backward pass of so many images fit the memory."""
    trained, reserved = [p for p in network.parameters() if p.requires_grad], []
    try:
        reserved = [torch.empty_like(p) for p in trained for _ in range(4 if config.ema_decay else 3)]
        _try_step(config, network.train(), loader, criterion, images)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        reserved.clear()
        network.zero_grad(set_to_none=True)
        release_memory()
    return True


def _try_step(
    config: TrainConfig,
    network: GroundingDINO,
    loader: TrainLoader,
    criterion: GroundingDINOCriterion,
    images: int,
) -> None:
    samples, scale = loader.dataset.samples, max([1.0, *config.multi_scale])
    sizes = [resize_keep_ratio(sample.size_hw, loader.image_format, scale).size_hw for sample in samples]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    fullest = max(range(len(samples)), key=lambda index: len(samples[index].class_ids))
    blank: list[Tensor | None] = [torch.zeros(3, height, width)]
    device = next(network.parameters()).device
    batch = loader.collate([fullest] * images, blank * images, epoch=0).to(device)
    boxes = [len(target.boxes_cxcywh) for target in batch.targets]
    counts, sizes = BatchCounts(boxes, int(batch.text.text_token_mask.sum())), [(height, width)] * len(boxes)
    with autocast(device, config.precision):
        output = network(batch.canvas(), sizes, batch.text, batch.targets, max(boxes))
    total(criterion(convert_to_fp32(output), batch.targets, counts)).backward()


def feature_caches(
    config: TrainConfig, network: GroundingDINO, loader: TrainLoader, valid: Dataset
) -> tuple[FeatureCache | None, FeatureCache | None, str]:
    """Return caches for the training and validation images (None: none), and a message."""
    if not config.cache_features:
        return None, None, ""
    caches = FeatureCache(network), FeatureCache(network)
    device, needed = next(network.parameters()).device, 0
    for dataset, views in ((loader.dataset, loader.num_views), (valid, 1)):
        views_of = [resize_keep_ratio(sample.size_hw, loader.image_format) for sample in dataset.samples]
        needed += caches[0].estimate_bytes([view.size_hw for view in views_of], views, device)
    what = f"the backbone's features of {loader.num_views} views per image, {needed / 2**20:,.0f} MB"
    stores = [store for store in (device, torch.device("cpu")) if store.type in _CACHE_SHARES]
    fits = [store for store in stores if needed <= _CACHE_SHARES[store.type] * free_memory(store)]
    if from_main(lambda: not fits):  # else processes could decide differently
        free = f"{free_memory(stores[-1]) / 2**20:,.0f} MB are free"
        return None, None, f" Not caching {what}: {free}. Each epoch computes them."
    for cache in caches:
        cache.store = fits[0] if fits else torch.device("cpu")
    loader.needs_pixels = caches[0].needs_pixels
    return *caches, f" Caching {what}."
