"""The Triton kernels in Triton's interpreter against `grid_sample`, and compiled for real GPUs."""

import importlib.util
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from groundtune.model import deformable
from groundtune.model.deformable import DeformableAttention, sample_levels
from groundtune.model.deformable_triton import kernel_problem, sample_fused

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed; it comes with torch for CUDA"
)
MAPS = [(5, 7), (3, 4), (1, 2)]
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # rounding of the results


def case(shapes, queries=3, width=4, spread=1.4, dtype=torch.float32, points=1, images=1, seed=0):
    """Levels, gradient of the result, values, locations and weights of two heads."""
    generator = torch.Generator().manual_seed(seed)
    positions = sum(h * w for h, w in shapes)
    value = torch.randn(images, positions, 2, width, generator=generator).to(dtype)
    uniform = torch.rand(images, queries, 2, len(shapes), points, 2, generator=generator)
    weights = torch.rand(images, queries, 2, len(shapes), points, generator=generator)
    upstream = torch.randn(images, queries, 2 * width, generator=generator).to(dtype)
    return shapes, upstream, value, uniform * spread - (spread - 1) / 2, weights


def strided(shapes):
    """Tensors none of which is contiguous."""
    return shapes, *(x.transpose(0, -1).contiguous().transpose(0, -1) for x in case(shapes, images=2)[1:])


def borders():
    """Points exactly on cells' centers, on the borders, and up to two cells outside."""
    shapes, upstream, value, locations, weights = case([(3, 4)], queries=16)
    x = torch.linspace(-2, 5.5, 16)[:, None] / 4
    locations[..., 0] = x[None, :, :, None, None]
    return shapes, upstream, value, locations, weights


CASES = {
    "levels, images, points": case(MAPS, images=2, points=2),
    "one level": case([(5, 7)]),
    "one cell": case([(1, 1)], spread=4.0),
    "far outside": case(MAPS, spread=9.0),
    "more queries than a block": case([(5, 7)], queries=17),
    "no query": case(MAPS, queries=0),
    "an empty level": case([(5, 7), (0, 3)]),
    "no position": case([(0, 3)]),
    "width 12": case([(5, 7)], width=12),
    "width 1": case([(5, 7)], width=1),
    "not contiguous": strided([(5, 7)]),
    "borders": borders(),
    "bfloat16": case([(5, 7)], dtype=torch.bfloat16),
    "float16": case([(5, 7)], dtype=torch.float16),
    "frozen": case([(5, 7)]),
}
NOT_FINITE = {name: case([(5, 7)], seed=3) for name in ("nan", "inf", "-inf", "1e30")}
for name, (_, _, _, locations, _) in NOT_FINITE.items():
    locations[0, 1, 0, 0, 0, 0] = float(name)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """Results of all cases: output and gradients of values, locations and weights."""
    path = tmp_path_factory.mktemp("triton") / "cases.pt"
    torch.save(NOT_FINITE | CASES, path)
    script = Path(__file__).with_name("triton_interpreter.py")
    source = str(Path(deformable.__file__).parents[2])
    python_path = os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": python_path}
    done = subprocess.run([sys.executable, str(script), str(path)], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return torch.load(path)


def expected(shapes, upstream, value, locations, weights):
    """Output and gradients of `grid_sample`, in float64; an empty map has no value to read."""
    filled = [(index, shape) for index, shape in enumerate(shapes) if math.prod(shape)]
    used = [index for index, _ in filled]
    inputs = [x.double().requires_grad_() for x in (value, locations, weights)]
    if not filled or not upstream.numel():
        return [upstream.double() * 0, *(x.detach() * 0 for x in inputs)]
    parts = inputs[0], [shape for _, shape in filled], inputs[1][:, :, :, used], inputs[2][:, :, :, used]
    output = sample_levels(*parts)
    return [output.detach(), *torch.autograd.grad(output, inputs, upstream.double())]


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_the_kernels_give_the_numbers_and_gradients_of_grid_sample(name, interpreted):
    value = CASES[name][2]
    tolerance = TOLERANCE[value.dtype]
    assert interpreted[name][0].dtype == interpreted[name][1].dtype == value.dtype
    assert interpreted[name][2].dtype == interpreted[name][3].dtype == torch.float32
    for ours, theirs in zip(interpreted[name], expected(*CASES[name]), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


@needs_triton
def test_values_without_gradient_leave_the_other_gradients_alone(interpreted):
    for ours, theirs in zip(interpreted["frozen values"], interpreted["frozen"][2:], strict=True):
        assert torch.equal(ours, theirs)


@needs_triton
def test_coordinates_that_are_not_finite_touch_their_own_query_only(interpreted):
    """An infinite point counts as nothing, as any outside; NaN shows, in its query and head only."""
    shapes, upstream, value, locations, weights = NOT_FINITE["inf"]
    without = weights.clone()
    without[0, 1, 0, 0, 0] = 0
    moved = locations.nan_to_num(posinf=0.5)
    output, of_value, of_locations, of_weights = expected(shapes, upstream, value, moved, without)
    of_weights[0, 1, 0, 0, 0] = 0
    for name in ("inf", "-inf", "1e30"):
        for ours, theirs in zip(interpreted[name], (output, of_value, of_locations, of_weights), strict=True):
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    unknown = interpreted["nan"][0].isnan()
    assert unknown[0, 1, :4].all() and unknown.sum() == 4  # this query and head, no other
    assert interpreted["nan"][1].isfinite().all() and interpreted["nan"][3].isnan().sum() == 1


@needs_triton
def test_the_check_before_the_first_use_finds_the_interpreter_right(interpreted):
    assert interpreted["problem"] == ""


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("capability", [70, 75, 80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_the_kernels_compile_for_gpus(capability, dtype):
    """To machine code, which needs no GPU."""
    if dtype == "bf16" and capability < 80:
        pytest.skip("groundtune does not choose bfloat16 on these GPUs")
    script = Path(__file__).with_name("triton_compiler.py")
    done = subprocess.run([sys.executable, str(script), str(capability), dtype], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_a_machine_without_the_kernels_says_why_and_samples_by_grid_sample(monkeypatch):
    problem = kernel_problem(torch.device("meta"))
    assert problem, "nothing can be computed there"
    calls = []
    value = torch.empty(1, 47, 2, 4, device="meta")
    monkeypatch.setattr(deformable, "sample_levels", lambda *inputs: calls.append(inputs) or inputs[0])
    deformable.sample_by_device(value, MAPS[:2], value.new_empty(1, 3, 2, 2, 2, 2), value)
    assert len(calls) == 1


def test_compiled_networks_see_one_operator_each_way():
    """By the shapes that the operators promise, under the tensors of `torch.compile`'s tracer."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        value = torch.empty(2, 49, 2, 4, dtype=torch.bfloat16, requires_grad=True)
        locations = torch.empty(2, 5, 2, 3, 2, 2, requires_grad=True)
        weights = torch.empty(2, 5, 2, 3, 2, requires_grad=True)
        output = sample_fused(value, MAPS, locations, weights)
        gradients = torch.autograd.grad(output.sum(), (value, locations, weights))
    assert (output.shape, output.dtype) == ((2, 5, 8), torch.bfloat16)
    for gradient, tensor in zip(gradients, (value, locations, weights), strict=True):
        assert (gradient.shape, gradient.dtype) == (tensor.shape, tensor.dtype)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", [*CASES])
def test_the_kernels_on_a_gpu(name):
    shapes, upstream, *tensors = CASES[name]
    assert kernel_problem(torch.device("cuda")) == ""
    inputs = [tensor.cuda().requires_grad_() for tensor in tensors]
    output = sample_fused(inputs[0], shapes, inputs[1], inputs[2])
    found = [output.detach(), *torch.autograd.grad(output, inputs, upstream.to(output))]
    tolerance = TOLERANCE[tensors[0].dtype]
    for ours, theirs in zip(found, expected(*CASES[name]), strict=True):
        torch.testing.assert_close(ours.double().cpu(), theirs, rtol=tolerance, atol=tolerance)


def test_a_wide_map_keeps_its_offsets_in_bfloat16():
    """An offset of one cell in a map of 333 cells is 1/333 of it; bfloat16 has no 333, only 332."""
    module = DeformableAttention(8, 1, 1, 1)
    seen = []
    module.sample = lambda value, shapes, locations, weights: (
        seen.append(locations) or value[:, :1].flatten(2)
    )
    with torch.autocast("cpu", torch.bfloat16):
        module(torch.zeros(1, 1, 8), torch.zeros(1, 1, 1, 2), torch.zeros(1, 333, 8), [(1, 333)], None)
    torch.testing.assert_close(seen[0].flatten(), torch.tensor([1 / 333, 0.0]), rtol=1e-6, atol=1e-7)
