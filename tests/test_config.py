"""Options: their values by source and type. The messages about mistakes are in test_messages.py."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from groundtune.config import (
    MODULES,
    OptimizerConfig,
    ParamGroup,
    TrainConfig,
    to_yaml,
    train_config,
    validate,
)
from groundtune.errors import ConfigError
from groundtune.options import read_yaml

FOUNDING = """
optimizer:
  type: AdamW
  lr: 0.0001
  weight_decay: 0.0001
param_groups:
  - modules: ['backbone']
    lr_mult: 0.0
  - modules: ['language_model']
    lr_mult: 0.0
  - modules: ['neck', 'encoder', 'decoder', 'bbox_head']
    lr_mult: 1.0
loss_cls: 2.0
loss_bbox: 5.0
loss_giou: 2.0
focal_alpha: 0.25
focal_gamma: 2.0
"""


def from_yaml(folder: Path, text: str, **cli: object) -> TrainConfig:
    path = folder / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return train_config({"data": "cats", **cli}, path, {})


def test_the_founding_yaml_is_accepted_as_it_stands(tmp_path: Path) -> None:
    config = from_yaml(tmp_path, FOUNDING)
    assert config.optimizer == OptimizerConfig("AdamW", 1e-4, 1e-4)
    assert config.param_groups == [
        ParamGroup(["backbone"], 0.0),
        ParamGroup(["language_model"], 0.0),
        ParamGroup(["neck", "encoder", "decoder", "bbox_head"], 1.0),
    ]
    losses = (config.loss_cls, config.loss_bbox, config.loss_giou, config.focal_alpha, config.focal_gamma)
    assert losses == (2.0, 5.0, 2.0, 0.25, 2.0)


def test_the_yaml_of_the_readme_begins_with_it() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    block = yaml.safe_load(readme.partition("```yaml\n")[2].partition("```")[0])
    assert block | yaml.safe_load(FOUNDING) == block


def test_the_defaults_freeze_the_towers_and_name_every_module_once() -> None:
    groups = TrainConfig(data="cats").param_groups
    assert sorted(path for group in groups for path in group.modules) == sorted(MODULES)
    assert {path for group in groups if group.lr_mult == 0 for path in group.modules} == {
        "backbone",
        "language_model",
    }


def test_the_command_line_overrides_the_file_and_the_file_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("optimizer: {lr: 0.2}\nepochs: 7\nbatch_size: 3\n")
    recipe = {"optimizer": {"lr": 0.1, "weight_decay": 0.3}, "epochs": 5, "ema_decay": 0.9}
    config = train_config({"data": "cats", "epochs": "9"}, path, recipe)
    assert config.optimizer == OptimizerConfig("AdamW", 0.2, 0.3)
    assert (config.epochs, config.batch_size, config.ema_decay, config.max_grad_norm) == (9, 3, 0.9, 0.1)
    assert train_config({"data": "cats", "lr": "1"}, path, recipe).optimizer.lr == 1.0


def test_an_exponent_without_a_dot_is_a_number(tmp_path: Path) -> None:
    assert isinstance(yaml.safe_load("lr: 1e-4")["lr"], str)  # the trap
    assert from_yaml(tmp_path, "optimizer:\n  lr: 1e-4\n").optimizer.lr == 1e-4


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("denoising", "no", False),
        ("denoising", True, True),
        ("flip", 1, 1.0),
        ("epochs", "2e1", 20),
        ("short_side", "none", None),
        ("multi_scale", "0.8, 1,1.2", [0.8, 1.0, 1.2]),
        ("multi_scale", [1], [1.0]),
        ("output_dir", Path("runs/x"), "runs/x"),
        ("output_dir", "none", "none"),
        ("data", 2024, "2024"),
        ("param_groups", [ParamGroup(["neck"], 2)], [ParamGroup(["neck"], 2.0)]),
        ("optimizer", OptimizerConfig(lr=3.0), OptimizerConfig(lr=3.0)),
    ],
)
def test_values_are_read_as_their_type(name: str, text: object, value: object) -> None:
    found = getattr(train_config({"data": "cats", name: text}, None, {}), name)
    assert found == value
    assert type(found) is type(value)


def test_all_mistakes_are_listed_with_the_place_of_each(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("epoch: 3\nflip: 2\n")
    with pytest.raises(ConfigError) as caught:
        train_config({"lr": "fast", "workers": "-1"}, tmp_path / "c.yaml", unwanted)
    head, *lines = str(caught.value).splitlines()
    assert head.startswith("5 problems")
    places = ["--lr", "--workers", f"{tmp_path}/c.yaml: epoch", f"{tmp_path}/c.yaml: flip", "DATA"]
    assert [line.strip().startswith(f"{place}: ") for line, place in zip(lines, places, strict=True)] == [
        True
    ] * 5


def unwanted(model: str) -> dict:
    raise AssertionError("a recipe is read although the options are wrong")


def test_the_recipe_of_the_chosen_model_is_read_once(tmp_path: Path) -> None:
    models = []

    def recipe(model: str) -> dict:
        models.append(model)
        return {"epochs": 30, "flip": 0.25}

    (tmp_path / "c.yaml").write_text("model: mine\nepochs: 7\n")
    config = train_config({"data": "cats"}, tmp_path / "c.yaml", recipe)
    assert (models, config.epochs, config.flip) == (["mine"], 7, 0.25)
    train_config({"data": "cats", "model": "yours"}, tmp_path / "c.yaml", recipe)
    train_config({"data": "cats"}, None, recipe)
    assert models == ["mine", "yours", "nano"]


@pytest.mark.parametrize("key", ["data", "output_dir", "resume", "extra_data", "rehearsal"])
def test_a_recipe_cannot_set_paths(key: str) -> None:
    with pytest.raises(ConfigError, match=f"recipe: {key}: .*paths"):
        train_config({"data": "cats"}, None, {key: ["/etc"] if "data" in key[1:] else "/etc"})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory. Expected a YAML file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin").write_bytes(b"out: caf\xe9")
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        read_yaml(tmp_path / "latin")
    (tmp_path / "empty").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty") == {}


def test_paths_inside_the_modules_are_checked_by_the_network(tmp_path: Path) -> None:
    config = from_yaml(tmp_path, "param_groups: [{modules: [encoder.layers.0, decoder], lr_mult: 0.5}]")
    assert config.param_groups == [ParamGroup(["encoder.layers.0", "decoder"], 0.5)]


def test_a_configuration_that_was_built_by_hand_is_checked_too() -> None:
    validate(TrainConfig(data="cats"))
    with pytest.raises(ConfigError, match="2 problems"):
        validate(TrainConfig(data="cats", epochs=0, optimizer=OptimizerConfig(lr=-1.0)))


PROBABILITY = st.floats(0, 1)
COUNT = st.integers(1, 10**6)
DATA = st.text("abc é'\"#:-", min_size=1)
OPTIONAL: dict[str, st.SearchStrategy] = {
    "output_dir": st.none() | st.sampled_from(["runs/a b", "yes", "1", "null", "1e-4"]),
    "seed": st.integers(0, 2**32 - 1),
    "max_train_images": st.none() | COUNT,
    "epochs": COUNT,
    "optimizer": st.builds(OptimizerConfig, lr=st.floats(1e-12, 10), weight_decay=st.floats(0, 1)),
    "param_groups": st.lists(st.sampled_from(MODULES), unique=True, min_size=1).flatmap(
        lambda names: st.floats(0, 10).map(lambda factor: [ParamGroup(names, factor)])
    ),
    "ema_decay": st.floats(0, 0.9999),
    "denoising": st.booleans(),
    "flip": PROBABILITY,
    "multi_scale": st.lists(st.floats(0.1, 10), max_size=4),
    "precision": st.sampled_from(["auto", "fp32", "bf16"]),
}


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({"data": DATA}, optional=OPTIONAL))
def test_any_options_come_back_from_yaml(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]
) -> None:
    path = tmp_path_factory.getbasetemp() / "options.yaml"
    config = TrainConfig(**values)
    path.write_text(to_yaml(config), encoding="utf-8")
    assert train_config({}, path, {"epochs": 3, "flip": 0.25}) == config  # resolved: a recipe changes nothing
    some = {name: value for name, value in dataclasses.asdict(config).items() if name in values}
    path.write_text(yaml.safe_dump(some), encoding="utf-8")
    assert train_config({}, path, {}) == config


def test_explicit_epochs_are_not_raised_by_the_recipe(tmp_path: Path) -> None:
    recipe = {"min_steps": 480, "epochs": 30}
    assert train_config({"data": "x"}, None, recipe).min_steps == 480
    assert train_config({"data": "x", "epochs": "2"}, None, recipe).min_steps == 0
    (tmp_path / "c.yaml").write_text("epochs: 2")
    assert train_config({"data": "x"}, tmp_path / "c.yaml", recipe).min_steps == 0
    assert train_config({"data": "x", "epochs": "2", "min_steps": "9"}, None, recipe).min_steps == 9
