"""Token inputs: phrase blocks against transformers, positive maps by hand, nothing cut, nothing
silent.
"""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.models.grounding_dino.modeling_grounding_dino import (
    generate_masks_with_special_tokens_and_transfer_map,
)

from groundtune.errors import CheckpointError, DataError
from groundtune.text.prompt import Prompt, class_prompt
from groundtune.text.tokens import (
    build_tokenizer,
    count_tokens,
    create_positive_map,
    create_positive_map_from_span,
    phrase_blocks,
    phrase_mask_and_positions,
    tokenize,
)

SEPARATORS = torch.tensor([101, 102, 1012, 1029])
NAMES = ["cat", "red blood cell", "t-shirt, men's", "and/or", "日本", "🙂"]
NAMES += ["platelet", "hair drier", "café", "x" * 120]
relaxed = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _captioned(*captions):
    return [Prompt(caption, (), ()) for caption in captions]


def test_build_tokenizer_reads_words_and_refuses_other_files(tokenizer, tmp_path):
    assert tokenizer("Cat.")["input_ids"] == [101, 4937, 1012, 102]
    with pytest.raises(CheckpointError, match="does not exist"):
        build_tokenizer(tmp_path / "missing.txt")
    other = Path(tmp_path / "vocab.txt")
    other.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", "cat"]), encoding="utf-8"
    )
    with pytest.raises(CheckpointError, match="separators"):
        build_tokenizer(other)


def test_phrase_mask_by_hand(tokenizer):
    # [CLS] cat . red cell . [SEP] [PAD] [PAD]
    ids = torch.tensor([[101, 4937, 1012, 2417, 3526, 1012, 102, 0, 0]])
    mask, positions = phrase_mask_and_positions(ids, ids != 0)
    expected = torch.zeros(9, 9, dtype=torch.bool)
    for block in ([0], [1, 2], [3, 4, 5], [6], [7], [8]):
        for row in block:
            expected[row, block] = True
    assert torch.equal(mask[0], expected)
    assert positions.tolist() == [[0, 0, 1, 0, 1, 2, 0, 0, 0]]


@relaxed
@given(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=8, unique=True))
def test_phrase_mask_equals_transformers_for_one_caption(tokenizer, names):
    text, _ = tokenize(tokenizer, [class_prompt(names)])
    mask, positions = generate_masks_with_special_tokens_and_transfer_map(text.input_ids, SEPARATORS)
    assert torch.equal(text.phrase_mask, mask)
    assert torch.equal(text.position_ids, positions)


@pytest.mark.parametrize("caption", ["cat . . dog. ", "? cat? dog. ", "...", "."])
def test_phrase_mask_equals_transformers_for_repeated_separators(tokenizer, caption):
    text, _ = tokenize(tokenizer, _captioned(caption))
    mask, positions = generate_masks_with_special_tokens_and_transfer_map(text.input_ids, SEPARATORS)
    assert torch.equal(text.phrase_mask, mask)
    assert torch.equal(text.position_ids, positions)


@relaxed
@given(
    batches=st.lists(st.lists(st.sampled_from(NAMES), max_size=6, unique=True), min_size=1, max_size=4),
    final_separator=st.booleans(),
)
def test_and_12_an_image_does_not_depend_on_the_batch(tokenizer, batches, final_separator):
    """The last phrase, with or without a final ".", reads the same however the caption is padded;
    pads see nothing.
    """
    captions = [class_prompt(names).caption for names in batches]
    if not final_separator:
        captions = [caption.removesuffix(". ") for caption in captions]
    together, _ = tokenize(tokenizer, _captioned(*captions))
    for image, caption in enumerate(captions):
        alone, _ = tokenize(tokenizer, _captioned(caption))
        length = alone.input_ids.shape[1]
        assert torch.equal(together.phrase_mask[image, :length, :length], alone.phrase_mask[0])
        assert torch.equal(together.position_ids[image, :length], alone.position_ids[0])
        assert torch.equal(together.input_ids[image, :length], alone.input_ids[0])
        assert together.text_token_mask[image].sum() == length
        padding = together.phrase_mask[image].clone()
        padding[:length, :length] = False
        assert torch.equal(padding.nonzero()[:, 0], padding.nonzero()[:, 1]), "pads see only themselves"


def test_last_phrase_without_separator_is_a_block_without_sep(tokenizer):
    text, _ = tokenize(tokenizer, _captioned("cat. red cell"))
    assert phrase_blocks(text) == [
        [
            (slice(0, 1), (101,)),
            (slice(1, 3), (4937, 1012)),
            (slice(3, 5), (2417, 3526)),
            (slice(5, 6), (102,)),
        ]
    ]
    assert text.position_ids.tolist() == [[0, 0, 1, 0, 1, 0]]


@relaxed
@given(batches=st.lists(st.lists(st.sampled_from(NAMES), max_size=6, unique=True), min_size=1, max_size=4))
def test_phrase_blocks_are_the_blocks_of_the_mask(tokenizer, batches):
    text, _ = tokenize(tokenizer, [class_prompt(names) for names in batches])
    for image, blocks in enumerate(phrase_blocks(text)):
        rebuilt = torch.eye(text.input_ids.shape[1], dtype=torch.bool)
        for tokens, ids in blocks:
            rebuilt[tokens, tokens] = True
            assert text.input_ids[image, tokens].tolist() == list(ids)
            assert text.position_ids[image, tokens].tolist() == list(range(len(ids)))
        assert torch.equal(rebuilt, text.phrase_mask[image])
        assert len(blocks) == len(batches[image]) + 2
        assert sum(len(ids) for _, ids in blocks) == text.text_token_mask[image].sum()
    single = {ids for names in batches for name in names for ids in [_phrase_ids(tokenizer, name)]}
    assert {ids for blocks in phrase_blocks(text) for _, ids in blocks[1:-1]} == single


def _phrase_ids(tokenizer, name):
    return tuple(tokenizer(f"{name}.", add_special_tokens=False)["input_ids"])


def test_phrase_blocks_of_consecutive_separators(tokenizer):
    text, _ = tokenize(tokenizer, _captioned("cat . . dog."))
    assert [ids for _, ids in phrase_blocks(text)[0]] == [(101,), (4937, 1012), (1012,), (3899, 1012), (102,)]


def test_positive_map_by_hand_with_words_of_several_pieces(tokenizer):
    # [CLS] platelet . red blood cell . [SEP]: wordpiece gives "plate ##let"
    _, (maps,) = tokenize(tokenizer, [class_prompt(["platelet", "red blood cell", "🙂", "a-b/c's"])])
    assert maps.dtype == torch.bool and maps.shape == (4, 256)
    assert [row.nonzero().flatten().tolist() for row in maps] == [
        [1, 2],
        [4, 5, 6],
        [8],
        [10, 11, 12, 13, 14, 15, 16],
    ]


def test_the_training_map_is_binary_and_the_span_map_is_normalized(tokenizer):
    prompt = class_prompt(["cat", "red blood cell"])
    tokenized = tokenizer([prompt.caption])
    binary = create_positive_map(tokenized, prompt.spans)
    assert set(binary.unique().tolist()) == {0.0, 1.0} and binary.sum(1).tolist() == [1, 3]
    assert torch.equal(tokenize(tokenizer, [prompt])[1][0], binary > 0)
    normalized = create_positive_map_from_span(tokenized, prompt.spans)
    assert normalized[1, 3:6].tolist() == pytest.approx([1 / 3.000001] * 3)
    assert normalized.sum(1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_positive_map_shapes_and_several_spans_in_a_row(tokenizer):
    tokenized = tokenizer(["cat. red blood cell. "])
    assert create_positive_map(tokenized, [], 64).shape == (0, 64)
    assert create_positive_map_from_span(tokenized, []).shape == (0, 256)
    (row,) = create_positive_map(tokenized, [[(0, 3), (15, 19)]], 10)
    assert row.tolist() == [0, 1, 0, 0, 0, 1, 0, 0, 0, 0]
    with pytest.raises(DataError, match=r"\[15, 19\)"):
        create_positive_map(tokenized, [[(15, 19)]], 5)  # the token lies past the last column: never cut


def test_char_to_token_uses_the_image_of_the_row(tokenizer):
    prompts = [class_prompt(["platelet", "dog"]), class_prompt(["hair drier", "platelet"])]
    text, maps = tokenize(tokenizer, prompts)
    for image, prompt in enumerate(prompts):
        _, (alone,) = tokenize(tokenizer, [prompt])
        assert torch.equal(maps[image], alone)
    tokenized = tokenizer([prompt.caption for prompt in prompts])
    assert torch.equal(create_positive_map(tokenized, prompts[1].spans, batch_index=1).bool(), maps[1])
    assert text.input_ids[1, maps[1][1].nonzero().flatten()].tolist() == text.input_ids[0, 1:3].tolist()


@pytest.mark.parametrize("silent", ["\u200b", "\u200d\ufeff", "\u0301"])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_names_without_a_token_are_named_and_never_mark_a_separator(tokenizer, silent, place):
    names = ["cat", "dog"]
    names.insert(place, silent)
    with pytest.raises(DataError) as error:
        tokenize(tokenizer, [class_prompt(["bird"]), class_prompt(names), class_prompt([silent])])
    assert repr(silent) in str(error.value) and "'cat'" not in str(error.value)
    prompt = class_prompt(names)
    with pytest.raises(DataError, match=f"row {place}"):
        create_positive_map(tokenizer([prompt.caption]), prompt.spans)


def test_a_syllable_of_several_tokens_is_marked_as_a_whole(tokenizer):
    _, (maps,) = tokenize(
        tokenizer, [class_prompt(["\ud4a9", "dog"])]
    )  # three letters in one character: three tokens
    assert [row.nonzero().flatten().tolist() for row in maps] == [[1, 2, 3], [5]]


def test_invisible_characters_around_letters_are_stepped_over(tokenizer):
    _, (maps,) = tokenize(tokenizer, [class_prompt(["\u200b\u200b\u200bcat\u200b\u200b\u200b", "dog"])])
    assert [row.nonzero().flatten().tolist() for row in maps] == [[1], [3]]


def test_a_prompt_over_the_budget_is_an_error_and_never_cut(tokenizer):
    fits = class_prompt([f"{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)])
    needed = sum(count_tokens(tokenizer, fits.phrases)) + 2
    text, (maps,) = tokenize(tokenizer, [fits], needed)
    assert text.input_ids.shape[1] == needed and maps.any(1).all()
    with pytest.raises(DataError, match=f"at most {needed - 1} tokens.*{needed} tokens in prompt 1"):
        tokenize(tokenizer, [class_prompt(["cat"]), fits], needed - 1)
    with pytest.raises(DataError, match="256"):
        tokenize(tokenizer, [class_prompt([f"class number {i}" for i in range(100)])])


@relaxed
@given(names=st.lists(st.text(min_size=1, max_size=15), min_size=1, max_size=6))
def test_any_unicode_either_tokenizes_with_a_token_per_name_or_is_a_data_error(tokenizer, names):
    try:
        prompt = class_prompt(names)
        text, (maps,) = tokenize(tokenizer, [prompt])
    except DataError:
        return
    assert maps.any(1).all()
    assert maps.sum(0).max() == 1, "phrases do not share tokens"
    assert not (maps[:, : text.input_ids.shape[1]] & torch.isin(text.input_ids, SEPARATORS)).any()
    assert (maps.sum(1) + 1).tolist() == count_tokens(tokenizer, prompt.phrases)
    assert len(phrase_blocks(text)[0]) == len(names) + 2


def test_count_tokens_adds_up(tokenizer):
    assert count_tokens(tokenizer, []) == []
    assert count_tokens(tokenizer, ["cat", "red blood cell", "platelet"]) == [2, 4, 3]
    text, _ = tokenize(tokenizer, [class_prompt(NAMES)])
    assert sum(count_tokens(tokenizer, NAMES)) + 2 == text.input_ids.shape[1]


def test_empty_prompt_and_moving_to_a_device(tokenizer):
    text, (maps,) = tokenize(tokenizer, [class_prompt([])])
    assert text.input_ids.tolist() == [[101, 102]] and maps.shape == (0, 256)
    moved = text.to("meta")
    assert moved.host is text
    assert {t.device.type for name, t in vars(moved).items() if name != "host"} == {"meta"}


def test_rows_and_blocks_of_a_moved_input_are_read_on_the_host(tokenizer):
    """Tensors on the device "meta" have no values."""
    text, _ = tokenize(tokenizer, [class_prompt(["cat"]), class_prompt(["red cup", "dog"])])
    moved = text.to("meta")
    assert phrase_blocks(moved) == phrase_blocks(text)
    (own,) = moved.rows([0]).input_ids.shape[1:]
    assert own == text.rows([0]).input_ids.shape[1] == 4 and moved.rows([0]).input_ids.device.type == "meta"
    assert moved.to("meta").host is text
