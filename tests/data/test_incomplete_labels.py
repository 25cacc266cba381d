"""Labels that are known to be incomplete: what readers and options say about each image, and the
tokens that are left out of its loss.
"""

from dataclasses import replace

import pytest
from coco_files import coco, image, write
from loader_files import dataset_of, loader_of, sample

from groundtune.cli import main
from groundtune.data.combine import rename_classes
from groundtune.data.formats.convert import convert
from groundtune.data.formats.detect import read_splits
from groundtune.data.mirror import mirror_labels
from groundtune.data.reading import read_data
from groundtune.data.sample import unify_classes
from groundtune.errors import ConfigError

CAT, DOG, FOX = 0, 1, 2
CATEGORIES = [(10, "cat"), (30, "dog"), (20, "fox")]


def exhaustive(dataset):
    return [each.exhaustive for each in dataset.samples]


def lvis(names=("a.png", "b.png"), frequency=None):
    """Cats and dogs in the first image, not all dogs with a box; no fox. The second one has no box."""
    content = coco(names, [(1, 10, [1, 1, 5, 5]), (1, 30, [9, 9, 5, 5])], CATEGORIES)
    content["images"][0] |= {"neg_category_ids": [20], "not_exhaustive_category_ids": [30]}
    content["images"][1]["neg_category_ids"] = [10, "77", None]
    for category in content["categories"]:
        category |= {"frequency": frequency} if frequency else {}
    return content


@pytest.mark.parametrize("frequency", [None, "c"])
def test_lists_of_lvis(tmp_path, frequency):
    dataset = read_splits(write(tmp_path / "train.json", lvis(frequency=frequency), tmp_path))["train"]
    assert exhaustive(dataset) == [{CAT, FOX}, {CAT}]


def test_no_lists_mean_that_all_objects_have_a_box(tmp_path):
    content = lvis()
    for row in content["images"]:
        row |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    dataset = read_splits(write(tmp_path / "train.json", content, tmp_path))["train"]
    assert exhaustive(dataset) == [None, None]


def test_two_entries_of_an_image_are_joined(tmp_path):
    content = lvis(("a.png", "a.png"))
    dataset = read_splits(write(tmp_path / "train.json", content, tmp_path))["train"]
    assert exhaustive(dataset) == [{CAT, FOX}]


def test_converted_lists_are_those_of_the_source(tmp_path):
    for split in ("train", "valid"):
        write(tmp_path / "a" / split / "_annotations.coco.json", lvis(), tmp_path / "a" / split)
    convert(tmp_path / "a", tmp_path / "b", "coco", link=False, input_format=None)
    before, after = (read_splits(tmp_path / name)["train"] for name in "ab")
    assert exhaustive(before) == exhaustive(after) == [{CAT, FOX}, {CAT}]


BOXES = "ImageID,LabelName,XMin,XMax,YMin,YMax\na,/m/c,0.25,0.5,0.25,0.5\nb,/m/d,0,1,0,1\n"
VERIFIED = """ImageID,Source,LabelName,Confidence
a,verification,/m/c,1
a,verification,/m/d,0
a,crowdsource-verification,/m/f,1
b,verification,/m/c,0.0
b,machine,/m/f,0
c,verification,/m/d,0
elsewhere,verification,/m/d,0
"""


def open_images(folder, verified=VERIFIED):
    for name in "abc":
        image(folder / "train" / f"{name}.jpg")
    image(folder / "validation/v.jpg")
    (folder / "train-annotations-bbox.csv").write_text(BOXES + "b,/m/f,0,1,0,0.5\n")
    (folder / "validation-annotations-bbox.csv").write_text(BOXES.split("b,")[0].replace("a,", "v,"))
    if verified:
        (folder / "train-annotations-human-imagelabels-boxable.csv").write_text(verified)
    (folder / "class-descriptions-boxable.csv").write_text("/m/c,cat\n/m/d,dog\n/m/f,fox\n")
    return folder


def test_verified_labels_of_open_images(tmp_path):
    """In image a the fox is present without a box; image c has verified labels only."""
    splits = read_splits(open_images(tmp_path))
    train = splits["train"]
    assert train.class_names == ["cat", "dog", "fox"]
    assert [(s.image_path.stem, set(s.class_ids.tolist()), s.exhaustive) for s in train.samples] == [
        ("a", {CAT}, {CAT, DOG}),
        ("b", {DOG, FOX}, {CAT, DOG, FOX}),
        ("c", set(), {DOG}),
    ]
    assert exhaustive(splits["valid"]) == [None]  # the file is that of the other split


def test_without_verified_labels_open_images_are_as_before(tmp_path):
    train = read_splits(open_images(tmp_path, ""))["train"]
    assert exhaustive(train) == [None, None] and len(train.samples) == 2


def test_verified_labels_alone_are_no_data_set(tmp_path):
    (tmp_path / "train-annotations-human-imagelabels.csv").write_text(VERIFIED)
    image(tmp_path / "a.jpg")
    assert main(["check", str(tmp_path)]) == 3


def half_labeled(folder):
    for split in ("train", "valid"):
        content = coco(["x/a.png", "y/b.png"], [(1, 10, [1, 1, 5, 5]), (2, 30, [9, 9, 5, 5])], CATEGORIES)
        write(folder / split / "_annotations.coco.json", content)
        image(folder / split / "x/a.png"), image(folder / split / "y/b.png")
    return folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), [None, None, None, None]),
        (None, [{CAT}, {DOG}, {CAT}, {DOG}]),
        (("one",), [{CAT}, {DOG}, None, None]),
        (("{}/two",), [None, None, {CAT}, {DOG}]),
        (("train/y",), [None, {DOG}, None, {DOG}]),
        (("{}/one/train/x", "two"), [{CAT}, None, {CAT}, {DOG}]),
    ],
)
def test_incomplete_data_sets_and_folders(tmp_path, names, expected):
    one, two = half_labeled(tmp_path / "one"), half_labeled(tmp_path / "two")
    names = names and tuple(name.format(tmp_path) for name in names)
    splits = read_data(str(one), [str(two)], {}, incomplete_sets=names)
    assert exhaustive(splits["train"]) == expected
    assert exhaustive(splits["valid"]) == [None, None]  # metrics count all labels


def test_an_incomplete_set_that_does_not_exist(tmp_path):
    one = half_labeled(tmp_path / "one")
    with pytest.raises(
        ConfigError, match=r"incomplete: no training image is in 'oen', 'z'\. Expected .*one\)"
    ):
        read_data(str(one), [], {}, incomplete_sets=["one", "z", "oen"])


def test_verified_labels_win_over_the_option(tmp_path):
    write(tmp_path / "train.json", lvis(), tmp_path)
    splits = read_data(str(tmp_path / "train.json"), [], {}, needed=["train"], incomplete_sets=None)
    known = {each.image_path.name: each.exhaustive for each in splits["train"].samples}
    assert known.items() <= {"a.png": {CAT, FOX}, "b.png": {CAT}}.items()


def test_classes_that_are_renumbered(tmp_path):
    """By other splits, by merging (both parts must be exhaustive), and by mirroring."""
    one = replace(sample(tmp_path, 0, [(1, 1, 9, 9)], [0]), exhaustive=frozenset({0, 2}))
    first, second = dataset_of([], ["x", "left cup"]), dataset_of([one], ["left cup", "cat", "right cup"])
    unify_classes([first, second])  # x, left cup, cat, right cup
    assert second.samples[0].exhaustive == {1, 3} and second.samples[0].class_ids.tolist() == [1]
    mirrored = mirror_labels(replace(second.samples[0], exhaustive=frozenset({0, 1})), [0, 3, 2, 1])
    assert mirrored.exhaustive == {0, 3}
    rename_classes([second], {"left cup": "cup", "right cup": "cup", "x": "animal", "cat": "animal"})
    assert second.class_names == ["animal", "cup"] and second.samples[0].exhaustive == {1}
    other = dataset_of([one], ["left cup", "cat", "right cup"])
    rename_classes([other], {"cat": "cup", "right cup": "cup"})
    assert other.class_names == ["left cup", "cup"] and other.samples[0].exhaustive == {0}


def test_tokens_that_only_labeled_objects_teach(tmp_path, tokenizer):
    """All classes are in the prompt; those of "zebra", two tokens of "red cell", are unlabeled."""
    names = ["cat", "red cell", "zebra"]
    samples = [
        replace(sample(tmp_path, 0, [(1, 1, 9, 9)], [0]), exhaustive=frozenset({0})),
        sample(tmp_path, 1, [(1, 1, 9, 9)], [0], size_hw=(40, 80)),
    ]
    loader = loader_of(dataset_of(samples, names), tokenizer, batch_size=2, negative_probability=0.0)
    (batch,) = loader.epoch(0)
    mask = batch.unlabeled_tokens()
    for own, prompt, row, ids in zip(batch.samples, batch.prompts, mask, batch.text.input_ids, strict=True):
        assert sorted(prompt.phrases) == names
        words = tokenizer.convert_ids_to_tokens(ids[row].tolist())
        assert sorted(words) == (["cell", "red", "zebra"] if own.exhaustive else [])
    complete = loader_of(dataset_of(samples[1:], names), tokenizer, batch_size=2)
    assert next(complete.epoch(0)).unlabeled_tokens() is None


def test_known_classes_are_in_the_prompt_first(tmp_path, tokenizer):
    """Of 300 classes about 125 fit. Without knowledge, all images draw them evenly."""
    names = [f"cat {number}" for number in range(300)]
    plain = sample(tmp_path, 0, [(1, 1, 9, 9)], [7])
    known = replace(plain, exhaustive=frozenset({7, 250, 260}))
    for own, drawn in ((known, {7, 250, 260}), (plain, {7})):
        loader = loader_of(dataset_of([own], names), tokenizer, batch_size=1, negative_probability=0.0)
        prompts = [set(next(loader.epoch(epoch)).prompts[0].phrases) for epoch in range(12)]
        assert set.intersection(*prompts) == {names[c] for c in drawn}
        assert all(60 < len(prompt) < 128 for prompt in prompts)


def test_options(tmp_path, capsys):
    """--no-exhaustive and a list in YAML reach the run; a wrong name ends it before it starts."""
    data = half_labeled(tmp_path / "one")
    (tmp_path / "a.yaml").write_text("incomplete: [elsewhere]\n")
    options = ["--config", str(tmp_path / "a.yaml"), "-o", str(tmp_path / "run")]
    assert main(["train", str(data), *options]) == 2
    assert "incomplete: no training image is in 'elsewhere'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
