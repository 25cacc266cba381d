"""Weights that are cast together give the numbers of autocast, in far fewer operations."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from groundtune.model import narrow
from groundtune.model.deformable import sample_levels, use_sampling

NAMES, SIZES_HW = [["cat", "red blood cell"], ["zebra"]], [(256, 288), (224, 256)]
VIEWS = set(
    "view expand permute transpose t unsqueeze squeeze select slice split split_with_sizes detach alias as_strided "
    "unbind _unsafe_view _reshape_alias diagonal lift_fresh empty empty_strided empty_like new_empty new_empty_strided".split()
)


class Launches(TorchDispatchMode):
    """Counts the operations that torch dispatches, except views and memory without content: each is at
    least one kernel of a GPU.
    """

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.__name__.split(".")[0] not in VIEWS
        return function(*args, **(kwargs or {}))


@pytest.fixture
def on_cpu(monkeypatch):
    """`on_cpu(True)`: under autocast a CPU casts weights together too, as a GPU does."""

    def switch(together):
        monkeypatch.setattr(
            narrow, "casts_together", lambda device: together and torch.is_autocast_enabled("cpu")
        )

    return switch


@pytest.mark.parametrize("frozen", [("backbone", "language_model"), ()])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_outputs_and_gradients_are_those_of_autocast(frozen, checkpointing, tiny, make_case, on_cpu):
    network = tiny("swin", frozen, dropout=0.0).train()
    network.language_model.eval()
    network.configure_training(denoising=True, gradient_checkpointing=checkpointing, bucket=None)
    case = make_case(NAMES, SIZES_HW, [2, 1])
    results = []
    for together in (False, True):
        on_cpu(together)
        torch.manual_seed(0)  # stochastic depth of a Swin that trains
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = case.run(network)
        heads = [output, *output["aux_outputs"], output["enc_outputs"], *output["dn_outputs"]]
        logits = [head["pred_logits"][..., :2].float() for head in heads]
        sum(
            x.sum() + head["pred_boxes"].square().sum() for x, head in zip(logits, heads, strict=True)
        ).backward()
        results.append((output, {n: p.grad for n, p in network.named_parameters() if p.grad is not None}))
    (plain, expected), (cast, found) = results
    assert torch.equal(plain["pred_logits"], cast["pred_logits"])
    assert torch.equal(plain["pred_boxes"], cast["pred_boxes"])
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], gradient, rtol=0.05, atol=0.01 * largest)


def test_weights_come_back_and_the_narrow_ones_are_aligned(tiny, make_case, on_cpu):
    network = tiny("swin")
    parameters = dict(network.named_parameters())
    on_cpu(True)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        make_case(NAMES, SIZES_HW, [0, 0]).run(network)
    for name, parameter in network.named_parameters():
        assert parameter is parameters[name] and parameter.dtype == torch.float32
    for name, weight in narrow.cast_weights(network).items():
        assert torch.equal(weight, network.get_parameter(name).bfloat16()), name
        assert weight.numel() % 8 or weight.storage_offset() % 8 == 0, name


def test_only_bfloat16_on_a_gpu_is_cast_together():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert not narrow.casts_together(cpu) and not narrow.casts_together(gpu)
    with torch.autocast("cpu", torch.bfloat16):
        assert not narrow.casts_together(cpu)


@torch.library.custom_op("test::sample", mutates_args=())
def sample_once(
    value: torch.Tensor, sides: list[int], at: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Deformable sampling as one operation, as the Triton kernel is."""
    shapes = list(zip(sides[::2], sides[1::2], strict=True))
    return sample_levels(value.float(), shapes, at, weights).to(value.dtype)


@torch.library.custom_op("test::sample_backward", mutates_args=())
def sample_backward(
    value: torch.Tensor, at: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Its backward pass, with gradients of 0."""
    return torch.zeros_like(value), torch.zeros_like(at), torch.zeros_like(weights)


def _save(ctx, inputs, output):
    value, _, at, weights = inputs
    ctx.save_for_backward(value, at, weights)


def _differentiate(ctx, gradient):
    of_value, of_at, of_weights = sample_backward(*ctx.saved_tensors)
    return of_value, None, of_at, of_weights


sample_once.register_autograd(_differentiate, setup_context=_save)


@pytest.mark.parametrize(
    ("frozen", "budget"), [(("backbone", "language_model"), 4_000), (("language_model",), 5_200)]
)
def test_launches_of_a_swin_t_step_at_batch_1(frozen, budget, tiny, make_case, on_cpu):
    """Forward and backward of the network; the loss and the optimizer have budgets of their own.

    The depth and the levels of Grounding DINO tiny, whose widths change no count; bfloat16's autocast of
    the CPU, with weights cast together and the sampling in one operation each way. It was 5,260.
    """
    swin = {
        "image_size": 64,
        "embed_dim": 16,
        "depths": [2, 2, 6, 2],
        "num_heads": [1, 2, 4, 8],
        "window_size": 7,
    }
    sizes = {"encoder_layers": 6, "decoder_layers": 6, "num_queries": 40}
    network = tiny("swin", frozen, backbone_config=swin, **sizes).train()
    network.language_model.eval()
    use_sampling(
        network, lambda value, shapes, *rest: sample_once(value, [s for hw in shapes for s in hw], *rest)
    )
    case = make_case([["cat", "red blood cell"]], [(256, 288)], [3])
    on_cpu(True)
    with Launches() as launches:
        with torch.autocast("cpu", torch.bfloat16):
            output = case.run(network)
        heads = [output, *output["aux_outputs"], output["enc_outputs"], *output["dn_outputs"]]
        tensors = [head[name] for head in heads for name in ("pred_logits", "pred_boxes")]
        torch.autograd.backward(tensors, [torch.zeros_like(tensor) for tensor in tensors])
    assert launches.count <= budget
