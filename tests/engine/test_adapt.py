"""`--tune`: what each way trains, what it leaves alone, what it costs in memory, and what lies on
disk afterwards.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import CLASSES, TOWERS, Recorder, differing, evaluated, options, run, tiny_bundle, weights

from groundtune.config import ParamGroup, TrainConfig, train_config, validate
from groundtune.data.formats.detect import load_splits
from groundtune.engine.optim import add_tuned_parameters, build_optimizer, freeze, param_groups
from groundtune.errors import ConfigError
from groundtune.model.bundle import ModelBundle
from groundtune.model.checkpoint.load import load_bundle

HEADS = ("bbox_head.", "decoder.label_embedding.")
OFFSETS = "encoder.phrase_offsets.vectors"


def adapted(
    way: str, data: Path, base: Path, out: Path, **changed: Any
) -> tuple[ModelBundle, dict[str, torch.Tensor], Any]:
    """The bundle after a run, its weights before, and the result."""
    bundle = load_bundle(base)
    before = weights(bundle)
    return bundle, before, run(options(data, tune=way, **changed), bundle, out)


def changed_names(before: dict[str, torch.Tensor], bundle: ModelBundle) -> set[str]:
    after = weights(bundle)
    return {name for name in after if name not in before or not torch.equal(before[name], after[name])}


def test_heads_trains_the_class_and_box_heads_only(data, base, tmp_path) -> None:
    bundle, before, _ = adapted("heads", data, base, tmp_path / "run")
    # the labels are made for the classes, then frozen
    found = changed_names(before, bundle) - {"decoder.label_embedding.weight"}
    trained = {name for name, _ in bundle.network.named_parameters() if name.startswith("bbox_head.")}
    assert {"bbox_head.cls_branches.0.bias", "bbox_head.reg_branches.2.layers.1.weight"} <= trained <= found
    assert all(name.startswith("bbox_head.") for name in found)


def test_prompt_trains_the_offsets_only(data, base, tmp_path) -> None:
    bundle, before, result = adapted("prompt", data, base, tmp_path / "run")
    assert changed_names(before, bundle) == {OFFSETS, "decoder.label_embedding.weight"}
    offsets = bundle.network.encoder.phrase_offsets
    assert offsets.names == CLASSES and offsets.vectors.any(-1).all()
    shipped = load_bundle(tmp_path / "run" / "model")
    assert torch.equal(shipped.network.encoder.phrase_offsets.vectors, offsets.vectors)
    assert "backbone" not in shipped.tuned_towers
    found = evaluated(shipped, load_splits(data)["valid"], batch_size=2)
    assert found.metrics["AP"] == result.metrics["valid/AP"]


def test_lora_trains_adapters_and_heads_and_leaves_a_plain_network(data, base, tmp_path) -> None:
    bundle, before, result = adapted("lora", data, base, tmp_path / "run", lora_rank=2, ema_decay=0.9)
    names = {name for name, _ in bundle.network.named_parameters()}
    assert names == {name for name, _ in load_bundle(base).network.named_parameters()}
    found = changed_names(before, bundle)
    loose = ("norm", ".bias", "level_embed", "gamma")  # of encoder and decoder: no adapter moves them
    adapted_parts = {name for name in found if not name.startswith(HEADS)}
    assert not [name for name in adapted_parts if any(part in name for part in loose)]
    assert all(name.startswith(("encoder.", "decoder.")) for name in adapted_parts)
    matrices = {name for name, parameter in bundle.network.named_parameters() if parameter.ndim == 2}
    layers = {name for name in matrices if name.startswith(("encoder.", "decoder."))}
    assert len(layers & found) >= len(layers - {"encoder.level_embed"})
    whole, opened = (load_bundle(tmp_path / "run" / name) for name in ("model", "adapter"))
    assert differing(weights(whole), weights(bundle)) == differing(weights(opened), weights(bundle)) == []
    assert opened.classes == CLASSES
    found = evaluated(opened, load_splits(data)["valid"], batch_size=2)
    assert found.metrics["AP"] == result.metrics["valid/AP"]
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "adapter").iterdir())
    assert size < 0.6 * (tmp_path / "run" / "model" / "model.safetensors").stat().st_size
    groups = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[1])["lr"]
    assert set(groups) == {"lora", "bbox_head", "decoder.label_embedding"}


@pytest.mark.parametrize("way", ["lora", "prompt", "heads"])
def test_resume_equals_uninterrupted(way, data, base, tmp_path) -> None:
    config = options(data, tune=way, epochs=3, ema_decay=0.9, save_steps=2)
    whole, parts = load_bundle(base), load_bundle(base)
    run(config, whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(config, parts, tmp_path / "parts", Recorder(stop_at=5))
    assert not [name for name in weights(parts) if "lora" in name]  # nothing is left in a stopped run's model
    config.resume, parts = str(tmp_path / "parts"), load_bundle(base)
    run(config, parts, tmp_path / "parts")
    assert differing(weights(whole), weights(parts)) == []
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "parts/metrics.jsonl").read_bytes()


def test_captions_have_no_names_to_learn(tokenizer) -> None:
    network, config = tiny_bundle(tokenizer).network, TrainConfig(data="x", tune="prompt")
    with pytest.raises(ConfigError, match="data set has captions"):
        add_tuned_parameters(network, config, [], tokenizer)


def test_one_thing_decides_what_trains(tmp_path) -> None:
    groups = [*TOWERS, ParamGroup(["neck"], 0.5)]
    with pytest.raises(ConfigError, match="^tune, param_groups: --tune lora and param_groups"):
        validate(TrainConfig(data="x", tune="lora", param_groups=groups))
    validate(TrainConfig(data="x", tune="full", param_groups=groups))
    validate(TrainConfig(data="x", tune="lora"))
    with pytest.raises(ConfigError, match="^--tune: expected full, lora, .*got 'adapters'"):
        train_config({"data": "x", "tune": "adapters"}, None, {})


def cost(bundle: ModelBundle, config: TrainConfig) -> int:
    """Bytes of the gradients and of AdamW's state."""
    network = bundle.network
    add_tuned_parameters(network, config, CLASSES, bundle.tokenizer)
    groups = param_groups(config)
    freeze(network, groups)
    optimizer = build_optimizer(network, config.optimizer, groups)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert len(optimizer.state) == sum(len(group["params"]) for group in optimizer.param_groups)
    held = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    held += [value for state in optimizer.state.values() for value in state.values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def test_lora_needs_less_than_sixty_percent_of_the_memory() -> None:
    ways = ("full", "lora", "heads", "prompt")
    costs = {way: cost(load_bundle("nano"), TrainConfig(data="x", tune=way)) for way in ways}
    assert costs["lora"] <= 0.6 * costs["full"]
    assert costs["prompt"] < costs["heads"] < costs["lora"]
