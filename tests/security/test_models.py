"""Model folders from strangers: a `CheckpointError` or a model that predicts; no network, no code,
no memory taken on trust.
"""

import json
import random
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_files import mutate
from PIL import Image
from predict_fakes import make_predictor
from safetensors.torch import load_file, save_file
from small_models import save_small
from watch import watched, within

from groundtune.errors import CheckpointError, GroundtuneError
from groundtune.model.checkpoint.load import load_bundle, load_recipe
from groundtune.printing import print_predictions, table

JUNK: list[Any] = [None, True, -1, 0, 1, 7, 10**6, 10**12, 10**400, 0.5, float("nan"), float("inf")]
JUNK += ["", "x", "../../x", "a/b", "\x1b[2J", [], [1], [[]], {}, {"a": 1}]
JUNK += [{"model_type": "detr"}, ["x"] * 50]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, Path]:
    return {kind: save_small(tmp_path_factory.mktemp("models") / "m", kind) for kind in ("own", "theirs")}


@pytest.fixture
def copy(sound, tmp_path):
    return lambda kind: Path(shutil.copytree(sound[kind], tmp_path / kind, dirs_exist_ok=True))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "groundtune.json").read_text())["config"]
    change(folder / "groundtune.json", config=config | values)


def finds(folder: Path) -> None:
    predictor = make_predictor(load_bundle(folder), ["cat"], threshold=0.0)
    assert len(predictor.find([Image.new("RGB", (70, 50))])) == 1


@pytest.mark.parametrize("kind", ["own", "theirs"])
def test_the_sound_folders_predict_without_network(copy, kind: str) -> None:
    folder = copy(kind)
    with watched() as seen:
        finds(folder)
    assert seen == []


@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "someone/model", "backbone_config": None},
        {"backbone": "resnet50", "use_timm_backbone": True, "backbone_config": None},
        {"backbone_config": {"model_type": "timm_backbone", "backbone": "resnet50"}},
        {"backbone_config": {"model_type": "detr", "backbone": "someone/model"}},
        {"text_config": {"model_type": "vision-encoder-decoder", "backbone": "someone/model"}},
        {"auto_map": {"AutoConfig": "someone/model--code"}, "backbone_config": {"model_type": ["swin"]}},
        {"_attn_implementation": "someone/kernel", "attn_implementation": "someone/kernel", "num_queries": 3},
    ],
)
def test_a_config_that_names_the_hub_is_not_followed(copy, settings: dict[str, Any]) -> None:
    folder = copy("theirs")
    change(folder / "config.json", **settings)
    with watched() as seen, pytest.raises(CheckpointError):
        load_bundle(folder)
    assert seen == []


@pytest.mark.parametrize("part", ["backbone_config", "language_config"])
@pytest.mark.parametrize("option", ["_attn_implementation", "attn_implementation", "auto_map", "torch_dtype"])
def test_options_that_name_code_are_refused(copy, part: str, option: str) -> None:
    folder = copy("own")
    inner = json.loads((folder / "groundtune.json").read_text())["config"][part]
    change_config(folder, **{part: inner | {option: "someone/kernel"}})
    message = rf"its config has .*'{option}': 'someone/kernel'"
    with watched() as seen, pytest.raises(CheckpointError, match=message):
        load_bundle(folder)
    assert seen == []


def test_a_tokenizer_gives_its_vocabulary_and_nothing_else(copy) -> None:
    folder = copy("theirs")
    wild = {"auto_map": {"AutoTokenizer": ["someone/model--code.Tokenizer", None]}, "tokenizer_class": "Code"}
    wild |= {"tokenizer_file": "/etc/passwd", "_name_or_path": "someone/model", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(wild))
    with watched() as seen:
        assert load_bundle(folder).tokenizer.tokenize("CAT dog") == ["cat", "dog"]
    assert seen == []


HUGE = [{"d_model": 10**6}, {"encoder_layers": 10**9}, {"num_heads": 2**40}, {"decoder_layers": 10**7}]
HUGE += [{"max_text_len": 10**9}, {"text_ffn_dim": 2**62}, {"num_labels": 10**10}]
HUGE += [{"ffn_dim": 10**10, "num_levels": 10**8}]


@pytest.mark.parametrize("sizes", HUGE)
def test_sizes_that_the_weights_do_not_have_take_no_memory(copy, sizes: dict[str, int]) -> None:
    folder = copy("own")
    change_config(folder, **sizes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with within(120), pytest.raises(CheckpointError, match="do not fit the model|no network can be built"):
        load_bundle(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KB


def test_levels_without_end_are_not_counted(copy) -> None:
    folder = copy("theirs")
    change(folder / "config.json", num_feature_levels=10**12)
    with within(60), pytest.raises(CheckpointError, match="of its sizes: num_levels is 1000000000000"):
        load_bundle(folder)


UNUSABLE = [{"short_side": 10**9}, {"max_side": 0}, {"std": [0, 1, 1]}, {"mean": [float("nan")] * 3}]


@pytest.mark.parametrize("image", [*UNUSABLE, {"short_side": "wide"}])
def test_an_image_format_that_hurts_is_refused(copy, image: dict[str, Any]) -> None:
    folder = copy("own")
    format = json.loads((folder / "groundtune.json").read_text())["image_format"]
    change(folder / "groundtune.json", image_format=format | image)
    with pytest.raises(CheckpointError, match=r"groundtune\.json is incomplete"):
        load_bundle(folder)


def test_names_of_classes_do_not_reach_the_terminal_as_commands(copy, capsys) -> None:
    folder, names = copy("own"), ["\x1b]0;owned\x07Cat\u202e", "dog\n"]
    change(folder / "groundtune.json", classes=names)
    bundle = load_bundle(folder)
    assert bundle.classes == names and bundle.phrases_of(names) == ["]0;owned cat", "dog"]
    found = [{"class": name, "score": 0.5, "box_xyxy": [0, 0, 1, 1]} for name in names]
    print_predictions([{"image": "a.png", "detections": found}], as_json=False)
    print(table([[name, "1"] for name in names]))
    shown = "\\x1b]0;owned\\x07Cat\\u202e"
    assert [line.split("  ")[-3:][0] for line in capsys.readouterr().out.splitlines()[1:3]] == [
        shown,
        "dog\\n",
    ]


def test_phrases_with_separators_are_refused(copy) -> None:
    for phrases in ({"cat": "a. b"}, {"cat": ""}, {"cat": 3}, ["cat"]):
        folder = copy("own")
        change(folder / "groundtune.json", phrases=phrases)
        with pytest.raises(CheckpointError, match="damaged"):
            load_bundle(folder)


def spoil_tensors(path: Path, rng: random.Random) -> None:
    state = load_file(path)
    for name in rng.sample(sorted(state), rng.randint(1, 3)):
        ways = [
            lambda t: t.to(
                rng.choice([torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float64])
            ),
            lambda t: t.float() * rng.choice([float("nan"), float("inf"), 1e38]),
            lambda t: t.flatten(),
            lambda t: t.reshape(-1)[:1].clone(),
            lambda t: torch.zeros(0),
            lambda t: torch.zeros(()),
            lambda t: torch.complex(t.float(), t.float()),
            lambda t: t.float().to(torch.float8_e4m3fn),
        ]
        changed = rng.choice(ways)(state.pop(name)).contiguous()
        if rng.random() < 0.8:
            state[name if rng.random() < 0.9 else f"{name}.x"] = changed
    save_file(state, path, metadata={"format": "pt"})


def spoil_value(path: Path, rng: random.Random) -> None:
    """Replace one value of a JSON file, at any depth, or take it away."""
    content = json.loads(path.read_text())
    place: Any = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.2:
            break
        place = inner
    if rng.random() < 0.2:
        del place[key]
    else:
        place[key] = rng.choice(JUNK)
    path.write_text(json.dumps(content))


def spoil_header(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    for _ in range(rng.randint(1, 4)):
        content[rng.randrange(8 + length)] = rng.randrange(256)
    path.write_bytes(content[: rng.choice([len(content)] * 3 + [rng.randrange(len(content))])])


def spoil(folder: Path, rng: random.Random) -> str:
    kinds = ("*.json", "*.safetensors", "vocab.txt")
    path = rng.choice([path for kind in kinds for path in sorted(folder.glob(kind))])
    if path.suffix == ".safetensors":
        rng.choice([spoil_tensors, spoil_header])(path, rng)
    elif path.suffix == ".json" and rng.random() < 0.7:
        spoil_value(path, rng)
    else:
        path.write_bytes(mutate(path.read_bytes(), path.name, rng))
    return path.name


def fuzz(kind: str, count: int, sound: Path, folder: Path) -> tuple[int, int]:
    rng, loaded, refused = random.Random(kind), 0, 0
    for number in range(count):
        corrupted = folder / "corrupted"
        shutil.rmtree(corrupted, ignore_errors=True)
        shutil.copytree(sound, corrupted)
        name = spoil(corrupted, rng)
        try:
            with within(120), watched() as seen:
                load_recipe(corrupted)
                finds(corrupted)
            loaded += 1
        except GroundtuneError as error:
            refused += 1
            assert len(str(error)) < 11_000
        except Exception as error:
            kept = shutil.copytree(corrupted, folder / f"kept-{number}", dirs_exist_ok=True)
            why = f"{kind} {number}: {type(error).__name__}: {error}; {kept / name}"
            raise AssertionError(why) from error
        assert seen == [], (kind, number, name, seen)
    return loaded, refused


@pytest.mark.parametrize("kind", ["own", "theirs"])
def test_corrupted_folders_predict_or_are_refused(sound, tmp_path: Path, kind: str) -> None:
    loaded, refused = fuzz(kind, 15, sound[kind], tmp_path)
    assert loaded and refused


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own", "theirs"])
def test_5000_corrupted_folders(sound, tmp_path: Path, kind: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded, refused = fuzz(kind, 2500, sound[kind], tmp_path)  # × 2 kinds
    assert loaded > 100 and refused > 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024 * 1024  # KB
