"""What we train and save, opened by transformers: the same detections; and the files beside the
weights.
"""

import json

import pytest
import torch
import yaml
from engine_runs import CLASSES, options, run, scenes, tiny_bundle
from PIL import Image
from predict_fakes import make_predictor
from safetensors.torch import load_file
from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, pipeline

from groundtune.contracts import ImageFormat
from groundtune.data.transforms import resize_keep_ratio, to_tensor
from groundtune.model.checkpoint.load import load_bundle
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import tokenize

PLAIN = {"contrastive_scale": "none", "contrastive_bias": False}
VARIANTS = {  # of the config.json that transformers gets: its flags of shared heads
    "grounding-dino": (PLAIN, {"decoder_bbox_embed_share": True}),
    "grounding-dino, separate": (PLAIN | {"share_box_head": False}, {"decoder_bbox_embed_share": False}),
    "mm-grounding-dino": (
        {"share_box_head": False, "share_class_head": False},
        {"decoder_bbox_embed_share": False, "decoder_cls_embed_share": False},
    ),
}


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    """`trained(variant)`: the run's model folder after six steps that train every part of the
    network.
    """
    folders = {}

    def train(variant):
        if variant not in folders:
            base = tmp_path_factory.mktemp("run")
            sizes = {"num_heads": 4, "fusion_heads": 2, "query_content": "learned", **VARIANTS[variant][0]}
            bundle = tiny_bundle(tokenizer, **sizes)
            bundle.image_format = ImageFormat((0.5, 0.4, 0.3), (0.25, 0.2, 0.3), short_side=64, max_side=96)
            bundle.base_model = "owner/model-tiny"
            before = {name: tensor.clone() for name, tensor in bundle.network.state_dict().items()}
            run(options(scenes(base / "shapes"), param_groups=[]), bundle, base / "out")
            after = bundle.network.state_dict()
            moved = [name for name in before if name in after and not torch.equal(before[name], after[name])]
            assert any("swin" in name for name in moved) and any("bert" in name for name in moved)
            folders[variant] = base / "out/model"
        return folders[variant]

    return train


def scores_and_boxes(logits, boxes_cxcywh, encoding, caption, size):
    """Detections of every query and class, worked out here: mean probability of the class's tokens;
    boxes in pixels.
    """
    width, height = size
    center, half = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:] / 2
    boxes = torch.cat((center - half, center + half), dim=1).clamp(0, 1) * torch.tensor([width, height] * 2)
    found = []
    for index, name in enumerate(CLASSES):
        begin = caption.index(name)
        tokens = sorted(
            {encoding.char_to_token(0, at) for at in range(begin, begin + len(name)) if caption[at] != " "}
        )
        scores = logits[:, tokens].sigmoid().mean(1)
        found += [(float(score), index, box) for score, box in zip(scores, boxes, strict=True)]
    return sorted(found, key=lambda one: -one[0])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_trained_model_gives_the_same_detections_in_transformers(variant, trained, shared, caplog):
    """One real image alone, so that nothing is padded. transformers clamps boxes at 1e-5, as the
    configuration here.
    """
    folder = trained(variant)
    image = Image.open(next((shared / "data/cat144/valid").glob("*.jpg"))).convert("RGB")
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    assert not [record for record in caplog.records if "newly initialized" in record.getMessage()]
    inputs = processor(images=image, text=[CLASSES], return_tensors="pt")
    with torch.no_grad():
        output = model.eval()(**inputs)
    caption = ". ".join(CLASSES) + "."
    assert processor.tokenizer(caption).input_ids == inputs.input_ids[0].tolist()
    encoding = processor.tokenizer([caption])
    expected = scores_and_boxes(output.logits[0], output.pred_boxes[0], encoding, caption, image.size)
    (found,) = make_predictor(load_bundle(folder), CLASSES, threshold=0.0, batch_size=1).each([image])
    assert len(found) == len(expected) == 20 * len(CLASSES)
    scores = torch.tensor([one[0] for one in expected])
    torch.testing.assert_close(torch.from_numpy(found.confidence), scores, rtol=0, atol=1e-5)
    gaps = torch.full_like(scores, torch.inf)
    gaps[1:] = scores[:-1] - scores[1:]
    # near ties may stand the other way
    apart = [i for i in range(len(scores) - 1) if min(gaps[i], gaps[i + 1]) > 2e-5]
    assert len(apart) >= 5
    for i in apart:
        assert found.class_id[i] == expected[i][1]
        torch.testing.assert_close(torch.from_numpy(found.xyxy[i]), expected[i][2], rtol=0, atol=0.05)


def test_the_pipeline_finds_the_same_on_a_real_image(trained, shared):
    """The pipeline asks for one label at a time, scores a box by its best token, and rounds boxes
    to whole pixels.
    """
    folder = trained("mm-grounding-dino")
    path = next((shared / "data/cat144/valid").glob("*.jpg"))
    detect = pipeline("zero-shot-object-detection", model=str(folder))
    found = detect(str(path), candidate_labels=["red circle."], threshold=0.0)
    bundle = load_bundle(folder)
    image = Image.open(path).convert("RGB")
    view = resize_keep_ratio((image.height, image.width), bundle.image_format)
    pixels = to_tensor(view.image(image), bundle.image_format)
    text, _ = tokenize(bundle.tokenizer, [class_prompt(["red circle"])])
    with torch.no_grad():
        output = bundle.network(pixels[None], [tuple(pixels.shape[1:])], text)
    scores = output["pred_logits"][0].sigmoid().max(-1).values
    order = scores.argsort(descending=True)
    assert len(found) == 20 and {one["label"] for one in found} == {"red circle."}
    found_scores = torch.tensor([one["score"] for one in found])
    torch.testing.assert_close(found_scores, scores[order], rtol=0, atol=1e-5)
    cx, cy, w, h = output["pred_boxes"][0][order[0]].tolist()
    best = [found[0]["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]
    expected = [(cx - w / 2) * image.width, (cy - h / 2) * image.height]
    expected += [(cx + w / 2) * image.width, (cy + h / 2) * image.height]
    assert all(abs(a - b) <= 1 for a, b in zip(best, expected, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_flags_of_shared_heads_are_written_out(variant, trained):
    settings = json.loads((trained(variant) / "config.json").read_text())
    flags = {n: settings[n] for n in settings if n.startswith("decoder") and n.endswith("embed_share")}
    assert flags == VARIANTS[variant][1]
    assert settings["architectures"] == [
        type(AutoModelForZeroShotObjectDetection.from_pretrained(trained(variant))).__name__
    ]


def test_the_files_beside_the_weights(trained):
    folder = trained("mm-grounding-dino")
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("preprocessor_config.json", "processor_config.json"),
        *("groundtune.json", "groundtune.safetensors", "README.md"),
    }
    meta = json.loads((folder / "groundtune.json").read_text())
    assert meta["classes"] == CLASSES and meta["base_model"] == "owner/model-tiny"
    results = meta["results"]
    assert results["metrics"].keys() == results["zero_shot"].keys() >= {"valid/AP", "valid/AP50"}
    (labels,) = load_file(folder / "groundtune.safetensors").items()
    assert (labels[0], list(labels[1].shape)) == ("decoder.label_embedding.weight", [3, 64])
    for name in ("preprocessor_config.json", "processor_config.json"):  # versions before 5 know no other name
        settings = json.loads((folder / name).read_text())
        settings = settings.get("image_processor", settings)
        assert settings["image_processor_type"] == "GroundingDinoImageProcessor"
        assert settings["size"] == {"shortest_edge": 64, "longest_edge": 96}
        assert settings["image_mean"] == [0.5, 0.4, 0.3]


def test_the_model_card(trained):
    card = (trained("mm-grounding-dino") / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "other",
        "library_name": "transformers",
        "pipeline_tag": "zero-shot-object-detection",
        "tags": ["groundtune", "grounding-dino", "object-detection"],
        "base_model": "owner/model-tiny",
    }
    assert "- Base model: owner/model-tiny\n" in text
    assert "- Data: shapes, 5 images with " in text
    assert "- Classes: red circle, blue star, green triangle\n" in text
    assert "| AP | " in text and "| AP50 | " in text and "- License: not stated" in text
    assert 'pipeline("zero-shot-object-detection", "FOLDER")' in text and "1e-3" not in text


def test_the_base_model_survives_a_second_fine_tuning(trained, tmp_path):
    from groundtune.model.checkpoint.save import save_bundle

    bundle = load_bundle(trained("grounding-dino"))
    save_bundle(bundle, tmp_path / "again")
    assert 'base_model: "owner/model-tiny"' in (tmp_path / "again/README.md").read_text()
    # paths of this machine stay here
    assert str(bundle.source) not in (tmp_path / "again/README.md").read_text()
