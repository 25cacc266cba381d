"""A phrase reads the same alone, in a prompt, and from the cache; the cache never outlives its
weights.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig, BertModel

from groundtune.model import language
from groundtune.model.language import LanguageModel
from groundtune.text.prompt import class_prompt
from groundtune.text.tokens import phrase_blocks, tokenize

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PROMPTS = [["red blood cell", "cat", "traffic light"], ["cat"], ["hair dryer", "red blood cell"]]


def language_model(seed=0, trainable=False, attention="sdpa"):
    torch.manual_seed(seed)
    bert = BertModel(BertConfig(**BERT), add_pooling_layer=False)
    bert.set_attn_implementation(attention)
    with torch.no_grad():  # BERT's own initial weights are so small that attention is nearly uniform
        for parameter in bert.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return LanguageModel(bert).eval().requires_grad_(trainable)


@pytest.fixture(scope="module")
def text(tokenizer):
    return tokenize(tokenizer, [class_prompt(names) for names in PROMPTS])[0]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("trainable", [False, True], ids=["cached", "plain"])
def test_a_phrase_in_a_prompt_equals_the_phrase_alone(trainable, attention, text):
    """Alone means transformers' own forward on the block's tokens: no mask, positions 0, 1, 2 …"""
    model = language_model(trainable=trainable, attention=attention)
    features = model(text)
    assert features.requires_grad == trainable
    for row, blocks in enumerate(phrase_blocks(text)):
        assert len(blocks) == len(PROMPTS[row]) + 2
        for tokens, ids in blocks:
            expected = model.bert(input_ids=torch.tensor([ids])).last_hidden_state[0]
            assert (features[row, tokens] - expected).abs().max() <= 1e-5


def test_cached_equals_plain_on_every_real_token(text):
    frozen, trained = language_model(trainable=False), language_model(trainable=True)
    real = text.text_token_mask
    torch.testing.assert_close(frozen(text)[real], trained(text)[real].detach(), rtol=1e-4, atol=1e-5)
    assert (frozen(text)[~real] == 0).all()


def test_each_phrase_runs_once(text):
    model = language_model()
    rows = []
    model.bert.register_forward_hook(lambda module, args, output: rows.append(len(output.last_hidden_state)))
    first = model(text)
    assert sum(rows) == 6, "[CLS], [SEP] and four different phrases"
    assert torch.equal(model(text), first) and sum(rows) == 6


def test_reading_the_cache_takes_as_many_operations_for_many_names_as_for_few(tokenizer):
    """In a launch each on a GPU, a thousand names would cost milliseconds."""

    class Counter(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += 1
            return function(*args, **(kwargs or {}))

    counts = []
    model = language_model()
    for names in (PROMPTS[1], ["red blood cell", "cat", "traffic light", "hair dryer", "dog", "owl"]):
        text = tokenize(tokenizer, [class_prompt(names)] * 2)[0]
        expected = model(text)
        with Counter() as counter:
            assert torch.equal(model(text), expected)
        counts.append(counter.count)
    assert counts[0] == counts[1]


def test_phrases_keep_their_features_while_the_cache_grows(tokenizer):
    model = language_model()
    texts = [
        tokenize(tokenizer, [class_prompt([f"{color} {shape}" for shape in ("box", "ball")])])[0]
        for color in ("red", "blue", "dark green", "pink", "light gray")
    ]
    first = [model(text) for text in texts]
    for text, features in zip(texts, first, strict=True):
        assert torch.equal(model(text), features)
        for tokens, ids in phrase_blocks(text)[0]:
            alone = model.bert(input_ids=torch.tensor([ids])).last_hidden_state[0]
            assert (features[0, tokens] - alone).abs().max() <= 1e-5


def test_the_cache_has_an_end(text, monkeypatch):
    monkeypatch.setattr(language, "MAX_CACHED", 5)
    model = language_model()
    expected = model(text)
    assert torch.equal(model(text), expected)
    assert len(model._phrase_features) == 6  # emptied, and filled again
    monkeypatch.setattr(language, "MAX_CACHED", 6)
    rows = []
    model.bert.register_forward_hook(lambda module, args, output: rows.append(output))
    assert torch.equal(model(text), expected) and rows == []


def _load(model):
    model.load_state_dict(language_model(seed=1).state_dict())


def _load_as_part(model):
    whole = torch.nn.ModuleDict({"language_model": language_model(seed=1)})
    torch.nn.ModuleDict({"language_model": model}).load_state_dict(whole.state_dict())


def _move(model):
    torch.nn.ModuleDict({"language_model": model}).double()


@pytest.mark.parametrize("change", [_load, _load_as_part, _move])
def test_new_weights_or_another_type_empty_the_cache(change, text):
    model = language_model()
    before = model(text)
    change(model)
    after = model(text)
    model.requires_grad_(True)
    expected = model(text)
    real = text.text_token_mask
    assert after.dtype == expected.dtype
    tolerance = 1e-9 if change is _move else 1e-5  # in float64 what float32 left in the cache would stand out
    torch.testing.assert_close(after[real], expected[real].detach(), rtol=tolerance, atol=tolerance)
    assert change is _move or (before[real] - after[real]).abs().max() > 0.01


@pytest.mark.parametrize("trained", ["all", "one parameter"])
def test_the_cache_is_not_used_while_bert_trains(trained, text):
    model = language_model()
    before = model(text)
    weight = model.bert.encoder.layer[1].output.dense.weight
    (model if trained == "all" else weight).requires_grad_(True)
    model.train(trained == "all")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    real = text.text_token_mask
    torch.testing.assert_close(model(text)[real], before[real], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        weight.mul_(2.0)  # a step of the optimizer
    stepped = model(text)
    assert (stepped[real] - before[real]).abs().max() > 0.01
    model.requires_grad_(False).eval()
    torch.testing.assert_close(model(text)[real], stepped[real].detach(), rtol=1e-4, atol=1e-5)
