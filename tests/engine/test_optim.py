"""Freezing, parameter groups, schedule and weight average."""

import pytest
import torch
from engine_fakes import FakeNetwork

from groundtune.config import OptimizerConfig, ParamGroup, TrainConfig
from groundtune.engine.optim import WeightAverage, build_optimizer, build_schedule, freeze, lr_multipliers
from groundtune.errors import ConfigError

TOWERS = [ParamGroup(["backbone"], 0.0), ParamGroup(["language_model"], 0.0)]


def trainable(network: torch.nn.Module) -> set[str]:
    return {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}


def test_frozen_means_no_gradient_no_dropout_not_in_the_optimizer_nor_in_the_clip() -> None:
    network = FakeNetwork()
    groups = [*TOWERS, ParamGroup(["neck", "encoder"], 0.5)]
    assert freeze(network, groups) == ["backbone", "language_model"]
    network.train()
    assert network.encoder.training
    for tower in (network.backbone, network.language_model):
        assert not any(module.training for module in tower.modules())
        assert not any(p.requires_grad for p in tower.parameters())
    optimizer = build_optimizer(network, OptimizerConfig(), groups)
    in_optimizer = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for p in network.parameters() if p.requires_grad}
    assert trainable(network) == {"neck", "encoder", "decoder", "bbox_head"}


def test_paths_match_at_dots_and_the_longest_wins() -> None:
    network = FakeNetwork()
    rates = {"backbone": 0.1, "encoder": 0.5, "encoder.0": 2.0}
    found = lr_multipliers(network, [ParamGroup([path], rate) for path, rate in rates.items()])
    assert found["backbone.0.weight"] == ("backbone", 0.1)
    assert found["language_model.backbone.weight"] == ("", 1.0)
    assert found["encoder.0.weight"] == ("encoder.0", 2.0)
    assert found["encoder.absolute_pos_embed"] == ("encoder", 0.5)


def test_a_part_of_a_frozen_module_can_train() -> None:
    network = FakeNetwork()
    assert freeze(network, [ParamGroup(["backbone"], 0.0), ParamGroup(["backbone.1"], 1.0)]) == ["backbone.0"]
    assert freeze(network, [ParamGroup(["encoder"], 0.0), ParamGroup(["encoder.0"], 1.0)]) == []
    assert not network.encoder.absolute_pos_embed.requires_grad and network.encoder[0].weight.requires_grad
    assert freeze(network, TOWERS) == ["backbone", "language_model"]
    assert network.encoder.absolute_pos_embed.requires_grad


def test_weight_decay_spares_only_the_absolute_position_embedding() -> None:
    network = FakeNetwork()
    freeze(network, TOWERS)
    config, groups = OptimizerConfig(lr=1e-3, weight_decay=0.01), [*TOWERS, ParamGroup(["encoder"], 0.5)]
    optimizer = build_optimizer(network, config, groups)
    by_name = {group["name"]: group for group in optimizer.param_groups}
    assert set(by_name) == {"rest", "encoder", "encoder.absolute_pos_embed"}
    assert by_name["encoder.absolute_pos_embed"]["params"] == [network.encoder.absolute_pos_embed]
    decay = {name: group["weight_decay"] for name, group in by_name.items()}
    assert decay == {"rest": 0.01, "encoder": 0.01, "encoder.absolute_pos_embed": 0.0}
    assert by_name["encoder"]["lr"] == pytest.approx(5e-4) and by_name["rest"]["lr"] == pytest.approx(1e-3)


def test_unknown_modules_are_one_message_with_a_suggestion() -> None:
    with pytest.raises(ConfigError) as error:
        freeze(FakeNetwork(), [ParamGroup(["bakbone", "transformer"], 0.0)])
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert "'bakbone'" in lines[0] and "Did you mean backbone?" in lines[0]
    assert "backbone, bbox_head, decoder, encoder, language_model, neck" in lines[1]


def test_refuses_nothing_to_train() -> None:
    everything = [ParamGroup(["backbone", "language_model", "neck", "encoder", "decoder", "bbox_head"], 0.0)]
    with pytest.raises(ConfigError, match="every module has lr_mult 0"):
        freeze(FakeNetwork(), everything)


def test_schedule_warms_up_and_drops_once() -> None:
    config = TrainConfig(data="x", warmup_steps=4, lr_drop_at=0.7, lr_drop_factor=0.1)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = build_schedule(optimizer, config, total_steps=10)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 0.2, 0.2, 0.2])


def test_weight_average_ramps_up_and_gives_the_own_weights_back() -> None:
    network = FakeNetwork()
    freeze(network, TOWERS)
    average = WeightAverage(network, decay=0.9)
    assert not any(name.startswith(("backbone", "language_model")) for name in average.average)
    start = network.decoder.weight.detach().clone()
    with torch.no_grad():
        network.decoder.weight.add_(1.0)
    average.update()  # decay 1/10: nine tenths of the way
    own = network.decoder.weight.detach().clone()
    with average.applied():
        assert torch.allclose(network.decoder.weight, start + 0.9)
    assert torch.equal(network.decoder.weight, own)
    for _ in range(200):
        average.update()
    with torch.no_grad():
        network.decoder.weight.add_(1.0)
    average.update()  # by now the decay is the limit, 0.9
    assert torch.allclose(average.average["decoder.weight"], start + 1.1, atol=1e-4)
