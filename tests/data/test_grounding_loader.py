"""Batches with captions, whose words are flipped with the image; extra data and rehearsal."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from coco_files import coco, image, write
from hypothesis import given
from hypothesis import strategies as st
from loader_files import dataset_of, loader_of, sample

from groundtune.data.combine import add_extra_data, parse_weighted_paths, with_rehearsal
from groundtune.data.formats.detect import load_splits
from groundtune.data.reading import read_data
from groundtune.data.sample import Grounding
from groundtune.errors import ConfigError, DataError
from groundtune.text.mirror import mirror_caption
from groundtune.text.prompt import caption_prompt

CAPTION = "the LEFT cup, a car near the right-hand carrot"
SPANS = (((0, 12),), ((14, 19),), ((25, 46),), ((4, 8), (9, 12)))


def captioned(
    folder,
    index,
    caption=CAPTION,
    spans=SPANS,
    boxes=((4, 5, 20, 25), (30, 2, 50, 20), (1, 1, 9, 9)),
    classes=(0, 2, 0),
):
    return replace(
        sample(folder, index, boxes, classes, size_hw=(40, 80)), grounding=Grounding(caption, spans)
    )


def phrases_of(tokenizer, batch, entry):
    """The tokens of each box's phrase, as text."""
    ids = batch.text.input_ids[entry]
    return [tokenizer.decode(ids[row[: len(ids)]]) for row in batch.targets[entry].positive_map]


def test_the_caption_is_the_prompt_and_spans_become_tokens(tmp_path, tokenizer):
    boxes = ((4, 5, 20, 25), (30, 2, 50, 20), (1, 1, 9, 9), (1, 2, 9, 9), (1, 3, 9, 9))
    full = captioned(tmp_path, 0, boxes=boxes, classes=(0, 2, 0, 1, 3))
    dataset = dataset_of([full, captioned(tmp_path, 1, "a dog?", (), (), ())], [])
    (batch,) = loader_of(dataset, tokenizer, batch_size=2, flip=0.0).epoch(0)
    first, second = batch.indices.index(0), batch.indices.index(1)
    assert batch.prompts[first].caption == CAPTION + "." and batch.prompts[second].caption == "a dog?"
    cup, carrot = "the left cup", "the right - hand carrot"
    assert phrases_of(tokenizer, batch, first) == [cup, carrot, cup, "a car", "left cup"]
    target = batch.targets[first]
    assert target.labels.tolist() == [0, 2, 0, 1, 3]
    assert target.boxes_cxcywh[0].tolist() == pytest.approx([12 / 80, 15 / 40, 16 / 80, 20 / 40])
    assert batch.targets[second].boxes_cxcywh.shape == (0, 4)
    assert batch.targets[second].positive_map.shape == (0, 256)


def test_a_flipped_image_has_a_flipped_caption(tmp_path, tokenizer):
    dataset = dataset_of([captioned(tmp_path, 0, classes=(0, 2, 3))], [])
    (batch,) = loader_of(dataset, tokenizer, flip=1.0, crop=1.0).epoch(0)
    assert batch.prompts[0].caption == "the RIGHT cup, a car near the left-hand carrot."
    assert phrases_of(tokenizer, batch, 0) == ["the right cup", "the left - hand carrot", "right cup"]
    assert batch.targets[0].boxes_cxcywh[0, 0].item() == pytest.approx(1 - 12 / 80)  # and it is not cropped
    loader = loader_of(dataset, tokenizer, cache_views=2)
    captions = [next(loader.epoch(epoch)).prompts[0].caption for epoch in (0, 1)]
    assert captions[0] != captions[1]


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("the left cup", "the right cup"),
        ("Leftmost and RIGHT, right.", "Rightmost and LEFT, left."),
        ("upright bright leftover lefty copyright", "upright bright leftover lefty copyright"),
        ("left right left", "right left right"),
        ("leftside rightward left-hand", "rightside leftward right-hand"),
        ("", ""),
    ],
)
def test_left_and_right_are_swapped(text, mirrored):
    assert mirror_caption(text, ())[0] == mirrored and mirror_caption(mirrored, ())[0] == text


@given(
    st.lists(st.sampled_from(["left", "right", "cup", "leftmost", "upright", "a"]), min_size=1, max_size=8),
    st.data(),
)
def test_spans_of_whole_words_follow_them(parts, data):
    caption = " ".join(parts)
    begins = [sum(len(p) + 1 for p in parts[:i]) for i in range(len(parts))]
    first = data.draw(st.integers(0, len(parts) - 1))
    last = data.draw(st.integers(first, len(parts) - 1))
    span = (begins[first], begins[last] + len(parts[last]))
    mirrored, ((moved,),) = mirror_caption(caption, ((span,),))
    assert mirrored[slice(*moved)].split() == mirrored.split()[first : last + 1]
    assert mirror_caption(mirrored, ((moved,),)) == (caption, ((span,),))


def test_a_span_within_a_side_takes_the_whole_word():
    assert mirror_caption("a right cup", (((2, 4),), ((5, 11),))) == ("a left cup", (((2, 6),), ((2, 10),)))


def test_a_caption_is_closed_once():
    assert caption_prompt("a cat ", (((0, 6),),)).caption == "a cat."
    assert caption_prompt("a cat ", (((2, 6),),)).spans == (((2, 5),),)
    captions = [caption_prompt(text, ()).caption for text in ("a cat . ", "what?", "")]
    assert captions == ["a cat .", "what?", "."]


def test_captions_that_the_model_cannot_read_are_reported_before_the_first_step(tmp_path, tokenizer):
    long = captioned(tmp_path, 1, "cat " * 300, (), (), ())
    silent = captioned(tmp_path, 2, "a cat \u200b", (((6, 7),),), (), ())
    dataset = dataset_of([captioned(tmp_path, 0), long, silent], [])
    with pytest.raises(DataError, match=r"2 captions .* 1.png \(303 tokens\), 2.png \(no token .*256 tokens"):
        loader_of(dataset, tokenizer)


def test_weights_are_the_number_of_times_an_image_is_shown(tmp_path, tokenizer):
    samples = [
        replace(sample(tmp_path, i, [(1, 1, 9, 9)], [0]), weight=[1.0, 0.25, 1.5][i % 3]) for i in range(24)
    ]
    loader = loader_of(dataset_of(samples), tokenizer, batch_size=4)
    seen = Counter()
    for epoch in range(40):
        plan = loader.batch_plan(epoch)
        shown = Counter(index % 3 for batch in plan for index in batch)
        assert shown == {0: 8, 1: 2, 2: 12} and len(plan) == len(loader) == 6
        seen.update(index for batch in plan for index in batch)
    assert len(seen) == 24 and all(seen[i] == 40 for i in range(0, 24, 3))
    assert loader.batch_plan(3) == loader_of(dataset_of(samples), tokenizer, batch_size=4).batch_plan(3)


def class_set(folder, names, classes, count=6):
    """`count` images, image i with a box of class i % C."""
    files = [f"{i}.png" for i in range(count)]
    boxes = [(i + 1, classes[i % len(classes)], [i, 1, 9, 9]) for i in range(count)]
    for split in ("train", "valid"):
        write(folder / split / "_annotations.coco.json", coco(files, boxes, names), folder / split)
    return folder


def test_classes_that_a_data_set_does_not_annotate_are_no_background_in_it(tmp_path, tokenizer):
    main = class_set(tmp_path / "a", [(1, "cat"), (2, "dog")], [1, 2])
    other = class_set(tmp_path / "b", [(9, "dog"), (1, "zebra")], [9, 1], 4)
    for number in range(4):
        image(tmp_path / "c" / f"{number}.png")
    rows = [
        f'{{"filename": "{n}.png", "height": 30, "width": 40, "grounding": {{"caption": "the left cat", "regions": '
        f'[{{"bbox": [1, 1, 9, {9 + n}], "phrase": "left cat"}}]}}}}'
        for n in range(4)
    ]
    (tmp_path / "c/train.jsonl").write_text("\n".join(rows))
    splits = load_splits(main)
    add_extra_data(splits, [(other, 1.0), (tmp_path / "c", 0.5)])
    train = splits["train"]
    assert train.class_names == splits["valid"].class_names == ["cat", "dog", "zebra"]
    assert len(train.samples) == 14 and len({s.image_id for s in train.samples}) == 14
    assert not splits["valid"].messages and [f.check for f in train.findings] == ["data-mixed"] * 2
    taught = {"a": set(), "b": set(), "c": set()}
    loader = loader_of(train, tokenizer, batch_size=4)
    shown = Counter()
    for epoch in range(12):
        for batch in loader.epoch(epoch):
            rows = zip(
                batch.samples, batch.prompts, batch.text.input_ids, batch.unlabeled_tokens(), strict=True
            )
            for own, prompt, ids, unlabeled in rows:
                source = own.image_path.relative_to(tmp_path).parts[0]
                masked = set(tokenizer.convert_ids_to_tokens(ids[unlabeled].tolist()))
                taught[source] |= set(prompt.phrases) - masked
                assert masked == set(prompt.phrases) & {"a": {"zebra"}, "b": {"cat"}, "c": set()}[source]
                shown[source] += 1
    assert taught == {"a": {"cat", "dog"}, "b": {"dog", "zebra"}, "c": {"left cat", "right cat"}}
    assert shown == {"a": 72, "b": 48, "c": 24}
    dogs = [s for s in train.samples if 1 in s.class_ids and s.grounding is None]
    assert {s.image_path.parts[-3] for s in dogs} == {"a", "b"}


def test_no_extra_data_changes_nothing_and_unreadable_data_is_an_error(tmp_path):
    splits = load_splits(class_set(tmp_path / "a", [(1, "cat")], [1]))
    before = list(splits["train"].samples)
    add_extra_data(splits, [])
    assert splits["train"].samples == before and all(s.annotated is None for s in before)
    with pytest.raises(DataError, match="does not exist"):
        add_extra_data(splits, [(tmp_path / "no", 1.0)])


def test_paths_with_numbers():
    assert parse_weighted_paths(["a", "a=b/c=0.5"], "extra_data", 1.0) == [
        (Path("a"), 1.0),
        (Path("a=b/c"), 0.5),
    ]
    for text in ("a=x", "a=0", "a=-1", "a=inf", "=2"):
        with pytest.raises(ConfigError, match="extra_data: .*PATH=NUMBER"):
            parse_weighted_paths(["b", text], "extra_data", 1.0)
    with pytest.raises(ConfigError, match="below 1, got 'b=1.0'"):
        parse_weighted_paths(["b=1.0"], "rehearsal", 0.2, 1.0)


def test_a_limit_of_images_does_not_apply_to_extra_data(tmp_path):
    main = class_set(tmp_path / "a", [(1, "cat")], [1])
    other = class_set(tmp_path / "b", [(1, "cat")], [1], 4)
    splits = read_data(str(main), [str(other)], {}, {"train": 2, "valid": 1})
    assert Counter(s.image_path.relative_to(tmp_path).parts[0] for s in splits["train"].samples) == {
        "a": 2,
        "b": 4,
    }
    assert len(splits["valid"].samples) == 1


def test_a_rehearsed_data_set_has_its_share_of_an_epoch_and_no_classes_in_valid(tmp_path, tokenizer):
    splits = load_splits(class_set(tmp_path / "a", [(1, "cat"), (2, "dog")], [1, 2], 12))
    other = class_set(tmp_path / "b", [(9, "dog"), (1, "zebra")], [9, 1], 8)
    train = with_rehearsal(splits["train"], [(other, 0.25)])
    assert splits["train"].class_names == splits["valid"].class_names == ["cat", "dog"]
    assert train.class_names == ["cat", "dog", "zebra"] and len(splits["train"].samples) == 12
    loader = loader_of(train, tokenizer, batch_size=4)
    indices = [i for epoch in range(3) for batch in loader.batch_plan(epoch) for i in batch]
    shown = Counter(train.samples[i].image_path.parts[-3] for i in indices)
    assert shown == {"a": 36, "b": 12}  # a quarter of 16
    assert all(sample.annotated == {0, 1} for sample in train.samples[:12])
    assert all(sample.annotated == {1, 2} for sample in train.samples[12:])
    assert with_rehearsal(splits["train"], []) is splits["train"]
    with pytest.raises(ConfigError, match="below 1"):
        with_rehearsal(splits["train"], [(other, 0.5), (other, 0.5)])
