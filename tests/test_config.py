"""Options: reading, converting, resolving, and what is said about mistakes."""

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


def message(folder: Path, text: str = "", **cli: object) -> str:
    with pytest.raises(ConfigError) as caught:
        from_yaml(folder, text, **cli)
    return str(caught.value).replace(str(folder), "DIR")


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


def test_the_founding_yaml_of_the_issue_and_of_the_analysis_are_one(shared: Path) -> None:
    analysis = (
        (shared / "founding-analysis.md")
        .read_text(encoding="utf-8")
        .partition("## Training Configuration")[2]
    )
    block = analysis.partition("```yaml")[2].partition("```")[0]
    assert yaml.safe_load(block) == yaml.safe_load(FOUNDING)


def test_the_defaults_freeze_the_towers_and_name_every_module_once() -> None:
    groups = TrainConfig(data="cats").param_groups
    assert sorted(path for group in groups for path in group.modules) == sorted(MODULES)
    assert {path for group in groups if group.lr_mult == 0 for path in group.modules} == {
        "backbone",
        "language_model",
    }


def test_the_layers_are_stronger_from_the_defaults_to_the_command_line(tmp_path: Path) -> None:
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
        ("out", Path("runs/x"), "runs/x"),
        ("out", "none", "none"),
        ("data", 2024, "2024"),
        ("param_groups", [ParamGroup(["neck"], 2)], [ParamGroup(["neck"], 2.0)]),
        ("optimizer", OptimizerConfig(lr=3.0), OptimizerConfig(lr=3.0)),
    ],
)
def test_values_are_read_as_their_type(name: str, text: object, value: object) -> None:
    found = getattr(train_config({"data": "cats", name: text}, None, {}), name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3", "DIR/c.yaml: epoch: there is no such option. Did you mean epochs?"),
        ("lr: 0.1", "DIR/c.yaml: lr: there is no such option. Did you mean optimizer.lr?"),
        (
            "optimizer: {lrr: 1}",
            "DIR/c.yaml: optimizer.lrr: there is no such option. Did you mean optimizer.lr?",
        ),
        ("zzz: 3", "DIR/c.yaml: zzz: there is no such option."),
        ("optimizer: AdamW", "DIR/c.yaml: optimizer: expected a mapping with type, lr, weight_decay."),
        ("optimizer: {type: SGD}", "DIR/c.yaml: optimizer.type: expected AdamW, got 'SGD'."),
        ("optimizer: {lr: fast}", "DIR/c.yaml: optimizer.lr: expected a number, got 'fast'."),
        ("optimizer: {lr: 0}", "DIR/c.yaml: optimizer.lr: expected a number above 0, got 0.0."),
        ("optimizer: {lr: .nan}", "DIR/c.yaml: optimizer.lr: expected a number, got nan."),
        ("epochs: 2.5", "DIR/c.yaml: epochs: expected a whole number, got 2.5."),
        ("epochs: true", "DIR/c.yaml: epochs: expected a whole number, got True."),
        ("epochs:", "DIR/c.yaml: epochs: expected a whole number, got nothing."),
        ("epochs: 0", "DIR/c.yaml: epochs: expected a number of at least 1, got 0."),
        ("ema: 1", "DIR/c.yaml: ema: expected a number of at least 0 and below 1, got 1.0."),
        ("denoising: maybe", "DIR/c.yaml: denoising: expected true or false, got 'maybe'."),
        ("precision: fp16", "DIR/c.yaml: precision: expected auto or fp32 or bf16, got 'fp16'."),
        ("multi_scale: [1, big]", "DIR/c.yaml: multi_scale: expected a list, each a number, got [1, 'big']."),
        (
            "multi_scale: [1, 0]",
            "DIR/c.yaml: multi_scale: expected a number of at least 0.1 and of at most 10, got 0.0.",
        ),
        ("out: [a]", "DIR/c.yaml: out: expected a text, got ['a']."),
        ("short_side: 400\nmax_side: 300", "short_side: 400 is more than max_side 300."),
        (
            "param_groups: backbone",
            "DIR/c.yaml: param_groups: expected a list, each a mapping with modules, lr_mult, got 'backbone'.",
        ),
        (
            "param_groups: [{lr_mult: 1}]",
            "DIR/c.yaml: param_groups[0]: modules: missing; expected paths of modules.",
        ),
        (
            "param_groups: [{modules: [neck], lr_mul: 1}]",
            "DIR/c.yaml: param_groups[0]: lr_mul: there is no such option. Did you mean lr_mult?",
        ),
        (
            "param_groups: [{modules: [bakbone.layers.0]}]",
            "param_groups: no module is called 'bakbone.layers.0'; there are backbone, language_model, neck, encoder, "
            "decoder, bbox_head and paths inside them. Did you mean backbone?",
        ),
        (
            "param_groups: [{modules: [neck]}, {modules: [neck], lr_mult: 0}]",
            "param_groups: 'neck' stands in more than one group; keep one of them.",
        ),
        ("param_groups: [{modules: []}]", "param_groups[0].modules: empty; name a module."),
        (
            "a: [",
            "DIR/c.yaml is not YAML at line 1, column 5: expected the node content, but found '<stream end>'.",
        ),
        ("- epochs", "DIR/c.yaml must be a mapping of options such as `epochs: 20`, found ['epochs']."),
        ("1: 2", "DIR/c.yaml: 1: there is no such option."),
    ],
)
def test_a_mistake_is_said_with_its_place_what_was_expected_and_the_fix(
    tmp_path: Path, text: str, said: str
) -> None:
    assert message(tmp_path, text) == said


def test_all_mistakes_are_listed_with_the_place_of_each(tmp_path: Path) -> None:
    assert message(tmp_path, "epoch: 3\nflip: 2\n", lr="fast", workers="-1") == (
        "4 problems with the options:\n"
        "  DIR/c.yaml: epoch: there is no such option. Did you mean epochs?\n"
        "  DIR/c.yaml: flip: expected a number of at least 0 and of at most 1, got 2.0.\n"
        "  --lr: expected a number, got 'fast'.\n"
        "  --workers: expected a number of at least 0, got -1."
    )


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory. Expected a YAML file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin").write_bytes(b"out: caf\xe9")
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        read_yaml(tmp_path / "latin")
    (tmp_path / "empty").write_text("# nothing\n")
    assert read_yaml(tmp_path / "empty") == {}


def test_paths_inside_the_modules_are_left_to_the_network(tmp_path: Path) -> None:
    config = from_yaml(tmp_path, "param_groups: [{modules: [encoder.layers.0, decoder], lr_mult: 0.5}]")
    assert config.param_groups == [ParamGroup(["encoder.layers.0", "decoder"], 0.5)]


def test_a_configuration_put_together_by_hand_is_checked_too() -> None:
    validate(TrainConfig(data="cats"))
    with pytest.raises(ConfigError, match="2 problems"):
        validate(TrainConfig(data="cats", epochs=0, optimizer=OptimizerConfig(lr=-1.0)))


PROBABILITY = st.floats(0, 1)
COUNT = st.integers(1, 10**6)
DATA = st.text("abc é'\"#:-", min_size=1)
OPTIONAL: dict[str, st.SearchStrategy] = {
    "out": st.none() | st.sampled_from(["runs/a b", "yes", "1", "null", "1e-4"]),
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


def test_epochs_that_are_asked_for_are_not_raised_by_the_recipe(tmp_path: Path) -> None:
    recipe = {"min_steps": 480, "epochs": 30}
    assert train_config({"data": "x"}, None, recipe).min_steps == 480
    assert train_config({"data": "x", "epochs": "2"}, None, recipe).min_steps == 0
    (tmp_path / "c.yaml").write_text("epochs: 2")
    assert train_config({"data": "x"}, tmp_path / "c.yaml", recipe).min_steps == 0
    assert train_config({"data": "x", "epochs": "2", "min_steps": "9"}, None, recipe).min_steps == 9
