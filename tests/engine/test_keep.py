"""`--keep-base`: the trained weights answer for the names of the data set, the base's for all
others, bit for bit.
"""

import json
from pathlib import Path

import pytest
import torch
from engine_runs import CLASSES, options, run, scenes, tiny_bundle
from predict_fakes import make_predictor

from groundtune import api
from groundtune.config import ParamGroup, TrainConfig, validate
from groundtune.errors import CheckpointError, ConfigError
from groundtune.model.bundle import ModelBundle, companion
from groundtune.model.checkpoint.load import load_bundle
from groundtune.model.checkpoint.save import save_bundle
from groundtune.predict.detect import class_prompts

OTHERS = ["cat", "green leaf"]


@pytest.fixture(scope="module")
def kept(data, base, tmp_path_factory) -> Path:
    """The folder of a run with --keep-base."""
    out = tmp_path_factory.mktemp("keep") / "run"
    run(options(data, keep_base=True), load_bundle(base), out)
    return out


def found(bundle: ModelBundle, names: list[str], data: Path) -> list:
    images = sorted(path for path in data.rglob("*") if path.suffix in (".jpg", ".png"))[:3]
    return list(make_predictor(bundle, names, threshold=0.0).each(images))


def of_classes(found: list, names: list[str]) -> list:
    """Boxes and scores of some names, in the order of the scores."""
    answers = []
    for one in found:
        rows = zip(one.data["class_name"], one.confidence, one.xyxy, strict=True)
        answers.append([(str(name), score, box.tolist()) for name, score, box in rows if name in names])
    return answers


def test_other_names_are_answered_by_the_base_bit_for_bit(kept, base, data) -> None:
    after, before = (of_classes(found(load_bundle(p), OTHERS, data), OTHERS) for p in (kept / "model", base))
    assert after == before and all(after)


def test_own_names_are_answered_by_the_trained_weights(kept, base, data) -> None:
    alone = load_bundle(kept / "model")
    assert alone.tuned_phrases == frozenset(CLASSES)
    answers = found(alone, CLASSES, data)
    alone.base_network = None
    expected = found(alone, CLASSES, data)
    assert of_classes(answers, CLASSES) == of_classes(expected, CLASSES)
    assert of_classes(answers, CLASSES) != of_classes(found(load_bundle(base), CLASSES, data), CLASSES)


def test_names_of_both_kinds_do_not_meet_in_a_prompt(kept, tokenizer) -> None:
    own = load_bundle(kept / "model").tuned_phrases
    names = [OTHERS[0], *CLASSES, OTHERS[1]]
    prompts = class_prompts(tokenizer, names, tuned_phrases=own)
    assert prompts.class_indices == [list(range(1, len(CLASSES) + 1)), [0, len(CLASSES) + 1]]
    assert prompts.use_base == [False, True]
    assert class_prompts(tokenizer, names).class_indices == [list(range(len(names)))]
    assert class_prompts(tokenizer, OTHERS, tuned_phrases=own).use_base == [True]


def test_a_question_of_both_kinds_has_the_answers_of_both(kept, data) -> None:
    bundle = load_bundle(kept / "model")
    both = found(bundle, [OTHERS[0], *CLASSES, OTHERS[1]], data)
    for names in (CLASSES, OTHERS):
        alone = of_classes(found(bundle, names, data), names)
        for mixed, expected in zip(of_classes(both, names), alone, strict=True):
            assert mixed and len(mixed) <= len(expected)  # both kinds share an image's 300 places
            assert [name for name, *_ in mixed] == [name for name, *_ in expected[: len(mixed)]]
            for (_, score, box), (_, same_score, same_box) in zip(mixed, expected, strict=False):
                assert score == pytest.approx(same_score, abs=1e-5) and box == pytest.approx(
                    same_box, abs=1e-3
                )


def test_what_is_retained_is_the_same_number_before_and_after(data, base, tmp_path) -> None:
    other = scenes(tmp_path / "other", classes=["red ring", "white heart"])
    run(options(data, keep_base=True, retention_data=[str(other)]), load_bundle(base), tmp_path / "run")
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())["retention"]["other"]
    assert numbers["before"] == numbers["after"]


def test_training_goes_on_with_the_first_base_or_without_it(kept, base, data, tmp_path) -> None:
    again = load_bundle(kept / "model")
    run(options(data, keep_base=True, seed=1), again, tmp_path / "again")
    first, second = load_bundle(base), load_bundle(tmp_path / "again" / "model")
    assert torch.equal(second.base_network.encoder.level_embed, first.network.encoder.level_embed)
    assert not torch.equal(second.network.encoder.level_embed, first.network.encoder.level_embed)
    plain = load_bundle(kept / "model")
    run(options(data), plain, tmp_path / "plain")
    assert load_bundle(tmp_path / "plain" / "model").base_network is None


def test_the_card_and_other_formats_say_what_cannot_be(kept, tmp_path) -> None:
    assert "transformers cannot open this folder" in (kept / "model/README.md").read_text()
    with pytest.raises(CheckpointError, match=r"it has two sets of weights \(--keep-base\)"):
        api.export(kept, tmp_path / "x.pth", format="idea")


def test_damaged_weights_are_told(kept, tmp_path) -> None:
    bundle = load_bundle(kept / "model")
    bundle.base_network.decoder.label_embedding = torch.nn.Embedding(2, 3)
    save_bundle(bundle, tmp_path / "odd")
    with pytest.raises(
        CheckpointError,
        match=r"kept.safetensors do not fit .* 1 of another shape, for example decoder.label_emb",
    ):
        load_bundle(tmp_path / "odd")


def test_the_copy_shares_the_towers_only(tokenizer) -> None:
    network = tiny_bundle(tokenizer).network
    copy = companion(network)
    own = {id(p) for p in network.parameters()}
    shared = {name for name, p in copy.named_parameters() if id(p) in own}
    assert shared == {
        n for n, _ in network.named_parameters() if n.startswith(("backbone.", "language_model."))
    }
    still = {name for name, p in copy.named_parameters() if not p.requires_grad}
    assert still >= {name for name, _ in copy.named_parameters()} - shared - {
        "decoder.label_embedding.weight"
    }


@pytest.mark.parametrize("changed", [{"tune": "lora"}, {"blend": 0.5}])
def test_other_ways_to_keep_are_not_mixed_with_it(changed, data) -> None:
    with pytest.raises(ConfigError, match="^keep_base: requires --tune full"):
        validate(TrainConfig(data=str(data), keep_base=True, **changed))


def test_towers_that_train_are_refused(data, base, tmp_path) -> None:
    groups = [ParamGroup(["backbone"], 0.1), ParamGroup(["language_model"], 0.0)]
    with pytest.raises(ConfigError, match="^keep_base: .*backbone would train"):
        run(options(data, keep_base=True, param_groups=groups), load_bundle(base), tmp_path / "run")
