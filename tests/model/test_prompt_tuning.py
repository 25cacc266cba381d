"""Offsets of class names: they act on their phrase wherever it stands, and on nothing else."""

import json

import pytest
import torch
from tiny_models import tiny_bundle
from torch import Tensor

from groundtune.api import Model, export
from groundtune.errors import CheckpointError
from groundtune.model.checkpoint.load import load_bundle
from groundtune.model.checkpoint.save import save_bundle
from groundtune.model.prompt_tuning import PhraseOffsets, extended
from groundtune.predict.detect import class_prompts
from groundtune.text.prompt import caption_prompt, class_prompt
from groundtune.text.tokens import TextInput, tokenize

WIDTH = 6
LEARNED = ["cat", "red blood cell"]  # of 1 and 3 tokens


def offsets(tokenizer) -> PhraseOffsets:
    made = PhraseOffsets(LEARNED, tokenizer, WIDTH)
    with torch.no_grad():
        made.vectors.copy_(torch.arange(1.0, 4 * WIDTH + 1).view(4, WIDTH))
    return made


def text_of(tokenizer, *prompts) -> tuple[TextInput, list[Tensor]]:
    return tokenize(tokenizer, [class_prompt(p) if isinstance(p, list) else p for p in prompts])


def features_of(text: TextInput) -> Tensor:
    return torch.randn(*text.input_ids.shape, WIDTH, generator=torch.Generator().manual_seed(0))


def test_each_token_of_a_learned_phrase_is_moved_by_its_own_vector(tokenizer) -> None:
    text, maps = text_of(tokenizer, ["dog", "red blood cell", "cat"], ["cat"])
    features, learned = features_of(text), offsets(tokenizer)
    expected = features.clone()
    expected[0, maps[0][1][: text.input_ids.shape[1]]] += learned.vectors[1:4]
    expected[0, maps[0][2][: text.input_ids.shape[1]]] += learned.vectors[0]
    expected[1, maps[1][0][: text.input_ids.shape[1]]] += learned.vectors[0]
    assert torch.equal(learned(features, text), expected)


@pytest.mark.parametrize(
    "prompt",
    [
        ["cats"],
        ["cat food", "wild cat"],
        ["blood cell", "red", "red cell blood"],
        [],
        caption_prompt("a cat on a red blood cell", ()),
    ],
)
def test_other_phrases_keep_their_bits(prompt, tokenizer) -> None:
    text, _ = text_of(tokenizer, prompt)
    features = features_of(text)
    assert torch.equal(offsets(tokenizer)(features, text), features)


def test_a_phrase_is_found_in_a_caption_and_however_it_is_written(tokenizer) -> None:
    text, _ = text_of(tokenizer, caption_prompt("Cat. a dog.", ()))
    features, learned = features_of(text), offsets(tokenizer)
    moved = (learned(features, text) - features).detach()
    assert moved[0, 1] == pytest.approx(learned.vectors[0].detach()) and int(moved.any(-1).sum()) == 1


def test_an_image_without_learned_phrases_still_has_a_graph(tokenizer) -> None:
    text, _ = text_of(tokenizer, ["dog"])  # a batch of captions, in training
    learned = offsets(tokenizer)
    learned(features_of(text), text).sum().backward()
    assert learned.vectors.grad is not None and not learned.vectors.grad.any()


def test_chunks_and_shuffled_prompts_find_the_offsets(tokenizer) -> None:
    names, learned = ["zebra", "red blood cell", "dog", "cat", "sofa"], offsets(tokenizer)
    for order in (names, names[::-1]):
        prompts = class_prompts(tokenizer, order, max_text_len=8)
        assert len(prompts.phrase_maps) > 1
        features = torch.zeros(*prompts.text.input_ids.shape, WIDTH)
        moved = learned(features, prompts.text).detach()
        found = {
            order[index]: moved[chunk, row[: moved.shape[1]]]
            for chunk, (maps, indices) in enumerate(
                zip(prompts.phrase_maps, prompts.class_indices, strict=True)
            )
            for row, index in zip(maps, indices, strict=True)
        }
        assert torch.equal(found["cat"], learned.vectors[:1]) and torch.equal(
            found["red blood cell"], learned.vectors[1:]
        )
        assert not any(found[name].any() for name in ("zebra", "dog", "sofa"))


def test_more_names_keep_what_was_learned(tokenizer) -> None:
    old = offsets(tokenizer)
    grown = extended(old, ["dog", "cat"], tokenizer, WIDTH)
    assert grown.names == ["cat", "red blood cell", "dog"]
    assert torch.equal(grown.vectors[:4], old.vectors)
    assert not grown.vectors[4:].any() and len(grown.vectors) == 5


@pytest.fixture
def tuned(tokenizer):
    """A tiny model that learned "cat" and "red blood cell", and one that did not."""
    base, bundle = tiny_bundle(tokenizer), tiny_bundle(tokenizer)
    encoder = bundle.network.encoder
    encoder.phrase_offsets = PhraseOffsets(LEARNED, tokenizer, bundle.network.language_model.width)
    with torch.no_grad():
        encoder.phrase_offsets.vectors.normal_(generator=torch.Generator().manual_seed(1))
    for each in (base, bundle):
        each.network.freeze(["backbone", "language_model"])
    bundle.classes = list(LEARNED)
    return base, bundle


def run(bundle, make_case, names):
    case = make_case([names], [(64, 64)], [0])
    with torch.no_grad():
        return case.run(bundle.network)


def test_a_prompt_without_the_names_gives_the_bases_output_bit_for_bit(tuned, make_case) -> None:
    base, bundle = tuned
    for names, same in ((["dog", "cat food", "cell"], True), (["dog", "cat"], False), (["dog"], True)):
        before, after = run(base, make_case, names), run(bundle, make_case, names)
        assert torch.equal(before["pred_logits"], after["pred_logits"]) is same
        assert torch.equal(before["pred_boxes"], after["pred_boxes"]) is same


def test_a_model_folder_keeps_them(tuned, make_case, tmp_path) -> None:
    _, bundle = tuned
    save_bundle(bundle, tmp_path / "model")
    opened = load_bundle(tmp_path / "model")
    assert opened.network.encoder.phrase_offsets.names == LEARNED
    assert torch.equal(
        opened.network.encoder.phrase_offsets.vectors, bundle.network.encoder.phrase_offsets.vectors
    )
    assert torch.equal(*(run(b, make_case, ["dog", "cat"])["pred_logits"] for b in (bundle, opened)))
    plain = load_bundle(tmp_path / "model")
    plain.network.encoder.phrase_offsets = None
    assert not torch.equal(*(run(b, make_case, ["dog", "cat"])["pred_logits"] for b in (plain, opened)))


@pytest.mark.parametrize("names", [["cat"], ["cat", "blood cell"], [], None, [1, 2], "cat"])
def test_names_that_do_not_fit_the_offsets_are_refused(names, tuned, tmp_path) -> None:
    save_bundle(tuned[1], tmp_path / "model")
    path = tmp_path / "model" / "groundtune.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"phrase_offsets": names}))
    with pytest.raises(CheckpointError, match="offsets of class names"):
        load_bundle(tmp_path / "model")


@pytest.mark.parametrize("form", ["hf", "idea"])
def test_other_tools_cannot_have_them(form, tokenizer, tmp_path) -> None:
    bundle = tiny_bundle(
        tokenizer, query_content="learned", contrastive_scale="none", contrastive_bias=False, num_heads=4
    )
    export(Model(bundle), tmp_path / "plain", format=form)
    bundle.network.encoder.phrase_offsets = PhraseOffsets(
        LEARNED, tokenizer, bundle.network.language_model.width
    )
    with pytest.raises(CheckpointError, match="learned offsets of class names"):
        export(Model(bundle), tmp_path / "tuned", format=form)
    save_bundle(bundle, tmp_path / "own")
    assert not (
        tmp_path / "own" / "config.json"
    ).exists()  # transformers must not open it as if it were whole
