"""Fine-tune transformers' Grounding DINO in your own training loop, with Groundtune's loss.

    python examples/own_training_loop.py DATA.json IMAGES --model IDEA-Research/grounding-dino-tiny

DATA.json is a COCO file. The loop uses three parts of Groundtune: prompts with character spans
(`class_prompt`), the map from spans to tokens (`create_positive_map`), and the criterion, which
matches queries with boxes and computes the losses.
"""

import argparse
import json
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

from groundtune.contracts import Target
from groundtune.loss.criterion import GroundingDINOCriterion, total
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import create_positive_map


def read_coco(json_path: Path, folder: Path) -> tuple[list[tuple[Path, Tensor, list[int]]], list[str]]:
    """Return (image path, boxes as xywh in pixels, class indices) of each image, and the class
    names.
    """
    content = json.loads(json_path.read_text())
    index_of = {category["id"]: index for index, category in enumerate(content["categories"])}
    rows: dict[int, list] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        rows[annotation["image_id"]].append((annotation["bbox"], index_of[annotation["category_id"]]))
    samples = []
    for image in content["images"]:
        boxes = torch.tensor([box for box, _ in rows[image["id"]]]).reshape(-1, 4)
        samples.append((folder / image["file_name"], boxes, [label for _, label in rows[image["id"]]]))
    return samples, [category["name"] for category in content["categories"]]


def make_target(boxes_xywh: Tensor, labels: list[int], size: tuple[int, int], phrase_map: Tensor) -> Target:
    """Make the target of one image: cxcywh relative to the image, and the tokens of each box's
    phrase.
    """
    width, height = size
    x, y, w, h = boxes_xywh.unbind(1)
    scale = torch.tensor([width, height, width, height])
    boxes_cxcywh = torch.stack([x + w / 2, y + h / 2, w, h], 1) / scale
    class_ids = torch.tensor(labels, dtype=torch.long)
    return Target(boxes_cxcywh, class_ids, class_ids, phrase_map[class_ids] > 0, noise_seed=0)


def prediction_heads(model: nn.Module, outputs, text_token_mask: Tensor) -> dict[str, object]:
    """Return the outputs of all decoder layers in the form that the criterion reads.

    The encoder's proposals are not included: transformers computes them from detached boxes
    (docs/semantics.md, rule 9).
    """
    layers = []
    references = [outputs.init_reference_points, *outputs.intermediate_reference_points.unbind(1)]
    for index, hidden in enumerate(outputs.intermediate_hidden_states.unbind(1)):
        logits = model.class_embed[index](hidden, outputs.encoder_last_hidden_state_text, text_token_mask)
        boxes = (model.bbox_embed[index](hidden) + torch.special.logit(references[index], eps=1e-5)).sigmoid()
        layers.append({"pred_logits": logits, "pred_boxes": boxes})
    return {**layers[-1], "aux_outputs": layers[:-1], "text_token_mask": text_token_mask}


def train(
    model, processor, samples, class_names: list[str], *, steps: int, batch_size: int, lr: float
) -> list[float]:
    """Fine-tune all but the backbone and the language model; return the loss of each step."""
    model.model.backbone.requires_grad_(False)
    model.model.text_backbone.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=1e-4
    )
    criterion = GroundingDINOCriterion()
    prompt = class_prompt(class_names)
    phrase_map = create_positive_map(processor.tokenizer([prompt.caption]), prompt.spans)
    losses = []
    model.train()
    for step in range(steps):
        batch = [samples[(step * batch_size + i) % len(samples)] for i in range(batch_size)]
        images = [Image.open(path).convert("RGB") for path, _, _ in batch]
        inputs = processor(images=images, text=[prompt.caption] * len(images), return_tensors="pt").to(
            model.device
        )
        targets = [
            make_target(boxes, labels, image.size, phrase_map).to(model.device)
            for image, (_, boxes, labels) in zip(images, batch, strict=True)
        ]
        outputs = prediction_heads(model, model(**inputs), inputs["attention_mask"].bool())
        loss = total(criterion(outputs, targets))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Fine-tune transformers' Grounding DINO with Groundtune's loss."
    )
    parser.add_argument("data", type=Path, help="COCO file")
    parser.add_argument("images", type=Path, help="directory of its images")
    parser.add_argument("--model", default="IDEA-Research/grounding-dino-tiny")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--output-dir", default="own-loop")
    options = parser.parse_args()
    samples, class_names = read_coco(options.data, options.images)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(options.model)
    processor = AutoProcessor.from_pretrained(options.model)
    losses = train(
        model,
        processor,
        samples,
        class_names,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
    )
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    model.save_pretrained(options.output_dir)
    processor.save_pretrained(options.output_dir)


if __name__ == "__main__":
    main()
