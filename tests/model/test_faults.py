"""Model sources that are wrong in one way: `CheckpointError` with the names and the number of them,
and no code runs.
"""

import json
import os
import pickle

import pytest
import torch
from oracle_models import oracle
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


def weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    (folder / "model.safetensors").unlink()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def without(prefix):
    return lambda state: [state.pop(name) for name in list(state) if name.startswith(prefix)]


def index(folder, content):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def tokenizer_without_separators(folder):
    rewrite(folder / "tokenizer.json", lambda content: content.replace(b'"?": 1029', b'"?": 999999'))


DAMAGES = {
    "truncated": (
        lambda f: rewrite(f / "model.safetensors", lambda content: content[: len(content) // 2]),
        r"Cannot read the weights .*model\.safetensors: .*incomplete.*Is the file complete\?",
    ),
    "another family": (
        lambda f: settings(f, model_type="detr"),
        "is a model of the type 'detr'; groundtune loads 'grounding-dino' and 'mm-grounding-dino'",
    ),
    "no family": (lambda f: settings(f, model_type=["detr"]), r"of the type \['detr'\]"),
    "two unknown options": (
        lambda f: settings(f, two_stage=False, activation_function="gelu"),
        "two_stage is False, expected True; activation_function is 'gelu', expected 'relu'",
    ),
    "settings of a wrong kind": (
        lambda f: settings(f, d_model="wide"),
        "config.json cannot be used: .*d_model",
    ),
    "sizes that nothing can have": (lambda f: settings(f, d_model=63), "no network can be built"),
    "settings that are no JSON": (
        lambda f: rewrite(f / "config.json", lambda _: b"{"),
        "config.json is not valid JSON",
    ),
    "missing": (
        lambda f: weights(f, without("model.decoder.layers.1.encoder_attn_text.")),
        r"8 missing, for example (model\.decoder\.layers\.1\.encoder_attn_text\.\w+\.\w+(, )?){3}\.",
    ),
    "unknown": (
        lambda f: weights(f, lambda state: state.update({f"adapter.{i}": torch.zeros(1) for i in range(5)})),
        r"has 5 weights that groundtune does not know, for example adapter\.0, adapter\.1, adapter\.2\.",
    ),
    "one layer too many": (
        lambda f: weights(f, lambda state: state.update({"bbox_embed.7.layers.0.bias": torch.zeros(64)})),
        r"1 unexpected, for example bbox_embed\.7\.layers\.0\.bias",
    ),
    "another shape": (
        lambda f: weights(f, lambda state: state.update({"model.enc_output.bias": torch.zeros(3)})),
        r"1 of another shape, for example model\.enc_output\.bias \[3\], expected \[64\]",
    ),
    "a tied head that differs": (
        lambda f: weights(
            f,
            lambda s: s.update(
                {"model.decoder.bbox_embed.0.layers.0.bias": s["bbox_embed.0.layers.0.bias"] + 1}
            ),
        ),
        "has 1 copies of a tied weight that differ from it, for example "
        "model.decoder.bbox_embed.0.layers.0.bias",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "expected model.safetensors or shards"),
    "a shard outside": (
        lambda f: index(f, {"weight_map": {"model.level_embed": "../secret.safetensors"}}),
        r"names a file outside its folder: \.\./secret\.safetensors",
    ),
    "an absolute shard": (
        lambda f: index(f, {"weight_map": {"a": "/etc/passwd"}}),
        "outside its folder: /etc/passwd",
    ),
    "a missing shard": (
        lambda f: index(f, {"weight_map": {"a": "b.safetensors"}}),
        r"Cannot read the weights .*b\.safe",
    ),
    "an index of another kind": (lambda f: index(f, {"weight_map": ["a"]}), "has no weight_map"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "expected vocab.txt or tokenizer.json"),
    "another tokenizer": (tokenizer_without_separators, r"phrase separators have the ids .*'\?': 999999"),
    "a broken tokenizer": (
        lambda f: rewrite(f / "tokenizer.json", lambda _: b"{"),
        "Cannot read the tokenizer",
    ),
    "another resizing": (
        lambda f: (f / "preprocessor_config.json").write_text('{"size": {"height": 800, "width": 800}}'),
        "image format cannot be used: size is .*expected a shortest_edge",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_hugging_face_directory(damage, folder):
    damaging, message = DAMAGES[damage]
    damaging(folder)
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
    if name == "plain.pth":
        (folder / name).write_bytes(
            pickle.dumps({"bomb": Bomb(mark)}, protocol=2)
        )  # as torch wrote before its zip files
    else:
        torch.save(content, folder / name)
    source = folder / name if name.endswith(".pth") else folder
    with pytest.raises(CheckpointError, match=r"\(\w+\.mkdir\) and is not opened: such a file can run code"):
        load_bundle(source)
    assert not mark.exists()
    torch.load(folder / name, weights_only=False) if name != "plain.pth" else pickle.loads(
        (folder / name).read_bytes()
    )
    assert mark.exists(), "the code was there to run"


def idea_state(shared):
    return torch.load(shared / "golden/idea_tiny.pth", weights_only=True)["model"]


PTH = {
    "missing": (
        lambda state: state.pop("module.transformer.enc_output.bias"),
        r"1 missing, for example transformer\.enc_output\.bias",
    ),
    "a size is missing": (
        lambda state: state.pop("module.transformer.tgt_embed.weight"),
        r"has no transformer\.tgt_embed\.weight, which defines a size",
    ),
    "no level embedding": (
        lambda state: state.pop("module.transformer.level_embed"),
        r"has no transformer\.level_em",
    ),
    "unknown": (
        lambda state: state.update({"module.extra": torch.zeros(1)}),
        "has 1 weights that .* for example extra",
    ),
    "another shape": (
        lambda state: state.update({"module.feat_map.bias": torch.zeros(5)}),
        r"1 of another shape, for example feat_map\.bias \[5\], expected \[256\]",
    ),
    "a packed tensor that has no thirds": (
        lambda state: state.update({"module.backbone.0.layers.0.blocks.0.attn.qkv.bias": torch.zeros(4)}),
        r"1 weights of a shape that their layout does not have, for example backbone\.0\..*qkv\.bias \[4\]",
    ),
    "sizes of another kind": (
        lambda state: state.update({"module.transformer.level_embed": torch.zeros(4)}),
        "shapes that no Grounding DINO has",
    ),
    "something that is no tensor": (
        lambda state: state.update({"module.epoch": 3}),
        "1 of its entries are no tensors, for example module.epoch",
    ),
}


@pytest.mark.parametrize("damage", PTH)
def test_a_damaged_pth(damage, shared, tmp_path):
    state = idea_state(shared)
    damaging, message = PTH[damage]
    damaging(state)
    torch.save({"model": state}, tmp_path / "model.pth")
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
    with pytest.raises(
        CheckpointError, match=f"is one file of a Hugging Face folder; name its folder {folder}"
    ):
        load_bundle(folder / "model.safetensors")


def test_the_command_line_says_it_in_one_line_and_returns_4(folder, tmp_path, capsys):
    settings(folder, model_type="detr")
    image = tmp_path / "image.png"
    from PIL import Image

    Image.new("RGB", (32, 32)).save(image)
    for arguments in (
        ["predict", str(folder), str(image), "--classes", "cat"],
        ["export", str(folder), "--output", "x"],
    ):
        assert main(arguments) == 4
        printed = capsys.readouterr()
        assert (
            printed.out == ""
            and printed.err.startswith("groundtune: error: ")
            and printed.err.count("\n") == 1
        )
        assert f"{folder} is a model of the type 'detr'" in printed.err
