"""Model sources that are wrong in one way: `CheckpointError` with the names and the number of them,
and no code runs.
"""

import json
import os
import pickle

import pytest
import torch
from oracle_models import oracle
from PIL import Image
from safetensors.torch import load_file, save_file

from groundtune.cli import main
from groundtune.errors import CheckpointError
from groundtune.model.checkpoint.load import load_bundle


@pytest.fixture(scope="module")
def original(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    oracle("grounding-dino", {}, [2, 3, 4]).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy of a Hugging Face directory to damage."""
    copy = tmp_path / "theirs"
    copy.mkdir()
    for path in original.iterdir():
        os.link(path, copy / path.name)
    return copy


def rewrite(path, change):
    """Give a linked file new content; the original keeps its own."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(change(content))


def settings(folder, **changed):
    rewrite(folder / "config.json", lambda content: json.dumps(json.loads(content) | changed).encode())


def text(folder, name, content):
    (folder / name).unlink(missing_ok=True)
    (folder / name).write_text(content)


def weights(folder, changed=None, without=()):
    state = load_file(folder / "model.safetensors") | (changed or {})
    (folder / "model.safetensors").unlink()
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(without))}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def index(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": content}))


TIED = "model.decoder.bbox_embed.0.layers.0.bias"
DAMAGES = {  # message: damage
    r"Cannot read the weights .*model\.safetensors: .*incomplete.*Is the file complete\?": lambda f: rewrite(
        f / "model.safetensors", lambda content: content[: len(content) // 2]
    ),
    "is a model of the type 'detr'; groundtune loads 'grounding-dino' and 'mm-grounding-dino'": lambda f: (
        settings(f, model_type="detr")
    ),
    r"of the type \['detr'\]": lambda f: settings(f, model_type=["detr"]),
    "two_stage is False, expected True; activation_function is 'gelu', expected 'relu'": lambda f: settings(
        f, two_stage=False, activation_function="gelu"
    ),
    "config.json cannot be used: .*d_model": lambda f: settings(f, d_model="wide"),
    "no network can be built": lambda f: settings(f, d_model=63),
    "config.json is not valid JSON": lambda f: text(f, "config.json", "{"),
    r"8 missing, for example (model\.decoder\.layers\.1\.encoder_attn_text\.\w+\.\w+(, )?){3}\.": lambda f: (
        weights(f, without=["model.decoder.layers.1.encoder_attn_text."])
    ),
    r"has 5 weights that groundtune does not know, for example adapter\.0, adapter\.1, adapter\.2\.": lambda f: (
        weights(f, {f"adapter.{i}": torch.zeros(1) for i in range(5)})
    ),
    r"1 unexpected, for example bbox_embed\.7\.layers\.0\.bias": lambda f: weights(
        f, {"bbox_embed.7.layers.0.bias": torch.zeros(64)}
    ),
    r"1 of another shape, for example model\.enc_output\.bias \[3\], expected \[64\]": lambda f: weights(
        f, {"model.enc_output.bias": torch.zeros(3)}
    ),
    f"has 1 copies of a tied weight that differ from it, for example {TIED}": lambda f: weights(
        f, {TIED: torch.ones(64)}
    ),
    "expected model.safetensors or shards": lambda f: (f / "model.safetensors").unlink(),
    r"names a file outside its folder: \.\./secret\.safetensors": lambda f: index(
        f, {"a": "../secret.safetensors"}
    ),
    "outside its folder: /etc/passwd": lambda f: index(f, {"a": "/etc/passwd"}),
    r"Cannot read the weights .*b\.safe": lambda f: index(f, {"a": "b.safetensors"}),
    "has no weight_map": lambda f: index(f, ["a"]),
    "expected vocab.txt or tokenizer.json": lambda f: (f / "tokenizer.json").unlink(),
    r"phrase separators have the ids .*'\?': 999999": lambda f: rewrite(
        f / "tokenizer.json", lambda content: content.replace(b'"?": 1029', b'"?": 999999')
    ),
    "Cannot read the tokenizer": lambda f: text(f, "tokenizer.json", "{"),
    "image format cannot be used: size is .*expected a shortest_edge": lambda f: text(
        f, "preprocessor_config.json", '{"size": {"height": 800, "width": 800}}'
    ),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_a_damaged_hugging_face_directory(message, folder):
    DAMAGES[message](folder)
    with pytest.raises(CheckpointError, match=message):
        load_bundle(folder)


class Bomb:
    """What a hostile pickle holds: its reading calls a function."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("name", ["model.pth", "pytorch_model.bin", "plain.pth"])
def test_a_pickle_that_carries_code_is_refused_and_the_code_does_not_run(name, folder, tmp_path):
    mark = tmp_path / "the code ran"
    content = {"model": {"transformer.level_embed": torch.zeros(4, 8), "bomb": Bomb(mark)}}
    (folder / "model.safetensors").unlink()
    if name == "plain.pth":  # as torch wrote before its zip files
        (folder / name).write_bytes(pickle.dumps({"bomb": Bomb(mark)}, protocol=2))
    else:
        torch.save(content, folder / name)
    source = folder / name if name.endswith(".pth") else folder
    with pytest.raises(CheckpointError, match=r"\(\w+\.mkdir\) and is not opened: such a file can run code"):
        load_bundle(source)
    assert not mark.exists()
    with (folder / name).open("rb") as file:
        pickle.load(file) if name == "plain.pth" else torch.load(file, weights_only=False)
    assert mark.exists(), "the code was there to run"


QKV = "backbone.0.layers.0.blocks.0.attn.qkv.bias"
PTH = {  # message: names without "module." and their new values, None for none
    r"1 missing, for example transformer\.enc_output\.bias": {"transformer.enc_output.bias": None},
    r"has no transformer\.tgt_embed\.weight, which defines a size": {"transformer.tgt_embed.weight": None},
    r"has no transformer\.level_em": {"transformer.level_embed": None},
    "has 1 weights that .* for example extra": {"extra": torch.zeros(1)},
    r"1 of another shape, for example feat_map\.bias \[5\], expected \[256\]": {
        "feat_map.bias": torch.zeros(5)
    },
    rf"1 weights of a shape that their layout does not have, for example {QKV} \[4\]": {QKV: torch.zeros(4)},
    "shapes that no Grounding DINO has": {"transformer.level_embed": torch.zeros(4)},
    "1 of its entries are no tensors, for example module.epoch": {"epoch": 3},
}


@pytest.mark.parametrize("message", PTH)
def test_a_damaged_pth(message, shared, tmp_path):
    state = torch.load(shared / "golden/idea_tiny.pth", weights_only=True)["model"]
    state |= {f"module.{name}": value for name, value in PTH[message].items()}
    kept = {name: value for name, value in state.items() if value is not None}
    torch.save({"model": kept}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=message):
        load_bundle(tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("half", "Cannot read the weights .*model.pth: .*Is the file complete"),
        (b"garbage", "Cannot read the weights .*model.pth"),
        (b"", "Cannot read the weights .*model.pth"),
        (
            {"a.weight": torch.zeros(1)},
            "is not a Grounding DINO of IDEA or MMDetection: its 1 names begin with a.weight",
        ),
        ([1, 2], "does not hold weights by name, found list"),
        ({}, "does not hold weights by name, found dict"),
    ],
)
def test_a_pth_that_is_none(content, message, tmp_path):
    path = tmp_path / "model.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save({"a": torch.zeros(1000)} if content == "half" else content, path)
    if content == "half":
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=message):
        load_bundle(path)


def test_the_weights_file_alone_names_its_folder(folder):
    message = f"is one file of a Hugging Face folder; name its folder {folder}"
    with pytest.raises(CheckpointError, match=message):
        load_bundle(folder / "model.safetensors")


def test_the_command_line_says_it_in_one_line_and_returns_4(folder, tmp_path, capsys):
    settings(folder, model_type="detr")
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    predict = ["predict", str(folder), str(tmp_path / "image.png"), "--classes", "cat"]
    for arguments in (predict, ["export", str(folder), "--output", "x"]):
        assert main(arguments) == 4
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        assert printed.err.startswith(f"groundtune: error: {folder} is a model of the type 'detr'")
