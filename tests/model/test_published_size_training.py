"""One training step of the published Swin-T model on a real 640-px image, on a CPU, within 8 GB."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
STEP = """
import json, resource, sys
from pathlib import Path

import torch

from groundtune.contracts import ImageFormat, Target
from groundtune.data.formats.detect import load_splits
from groundtune.data.images import load_image
from groundtune.data.transforms import resize_keep_ratio, to_tensor
from groundtune.loss.criterion import GroundingDINOCriterion, total
from groundtune.model.bundle import build_network
from groundtune.model.checkpoint.load import load_bundle
from groundtune.model.config import ModelConfig
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import tokenize

torch.set_num_threads(2)
train = load_splits(Path(sys.argv[1]))["train"]
sample = max(train.samples, key=lambda sample: len(sample.class_ids))
image = load_image(Path(sample.image_path))
form = ImageFormat((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 640, 640)
view = resize_keep_ratio((image.height, image.width), form)
pixels = to_tensor(view.image(image), form)
tokenizer = load_bundle("nano").tokenizer
text, maps = tokenize(tokenizer, [class_prompt(train.class_names)])
labels = torch.as_tensor(sample.class_ids)
boxes = torch.as_tensor(sample.boxes_xyxy).float() / torch.tensor([image.width, image.height] * 2)
boxes = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1)
network = build_network(ModelConfig())
network.freeze([])  # everything trains: the most memory
network.train()
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
before = network.backbone.body.swin.embeddings.patch_embeddings.projection.weight.detach().clone()
output = network(pixels[None], [tuple(pixels.shape[1:])], text, [Target(boxes, labels, labels, maps[0][labels], 0)])
loss = total(GroundingDINOCriterion()(output, [Target(boxes, labels, labels, maps[0][labels], 0)], None))
loss.backward()
without = [name for name, p in network.named_parameters() if p.grad is None]
optimizer.step()
moved = float((network.backbone.body.swin.embeddings.patch_embeddings.projection.weight - before).detach().abs().max())
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"loss": float(loss), "moved": moved, "without": without, "peak": peak, "size": list(pixels.shape[1:]),
    "boxes": len(boxes), "parameters": sum(p.numel() for p in network.parameters())}))
"""


@pytest.mark.slow
def test_one_step_at_the_published_size_fits_in_8_gb(shared):
    """All parts train, AdamW's two moments included. The towers are random: time and memory do not
    depend on them.
    """
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", STEP, str(shared / "data/bccd")]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert found.returncode == 0, found.stderr
    seen = json.loads(found.stdout.splitlines()[-1])
    assert max(seen["size"]) == 640 and seen["boxes"] > 0
    assert 170e6 < seen["parameters"] < 175e6  # the published model has 172 million
    assert seen["without"] == [], "parameters without a gradient"
    assert 0 < seen["loss"] < float("inf") and seen["moved"] > 0
    assert seen["peak"] < 8, f"{seen['peak']:.1f} GiB"
