"""Multi-scale deformable attention against a plain loop with bilinear interpolation by hand, and
against transformers.
"""

import math

import pytest
import torch
from transformers import GroundingDinoConfig
from transformers.models.grounding_dino.modeling_grounding_dino import (
    GroundingDinoEncoder,
    GroundingDinoMultiscaleDeformableAttention,
)

from groundtune.model import deformable
from groundtune.model.deformable import (
    DeformableAttention,
    compile_sampling,
    gather_levels,
    sample_bags,
    sample_levels,
)
from groundtune.model.encoder import reference_points

LEVELS = [(5, 7), (3, 4), (1, 2)]
POSITIONS = sum(h * w for h, w in LEVELS)


def bilinear(feature_map, x, y):
    """Value at (x, y) of a map (h, w, C) whose cell (column i, row j) has its center at (i + .5, j
    + .5); 0 outside.
    """
    h, w, width = feature_map.shape
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    value = feature_map.new_zeros(width)
    for column in (left, left + 1):
        for row in (top, top + 1):
            if 0 <= column < w and 0 <= row < h:
                value += (1 - abs(x - 0.5 - column)) * (1 - abs(y - 0.5 - row)) * feature_map[row, column]
    return value


def loop(value, locations, weights):
    """`sample_levels` with a loop for each axis."""
    batch, _, heads, width = value.shape
    output = value.new_zeros(batch, locations.shape[1], heads, width)
    starts = [sum(h * w for h, w in LEVELS[:level]) for level in range(len(LEVELS))]
    for b in range(batch):
        for query in range(locations.shape[1]):
            for head in range(heads):
                for level, (h, w) in enumerate(LEVELS):
                    feature_map = value[b, starts[level] : starts[level] + h * w, head].view(h, w, width)
                    for point in range(locations.shape[4]):
                        x, y = locations[b, query, head, level, point].tolist()
                        output[b, query, head] += weights[b, query, head, level, point] * bilinear(
                            feature_map, x * w, y * h
                        )
    return output.flatten(2)


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0], ids=["inside", "over the border", "far outside"])
def test_sampling_equals_a_loop(spread):
    generator = torch.Generator().manual_seed(int(spread))
    value = torch.randn(2, POSITIONS, 2, 3, generator=generator, dtype=torch.float64)
    uniform = torch.rand(2, 4, 2, 3, 2, 2, generator=generator, dtype=torch.float64)
    locations = uniform * (1 + spread) - spread / 2
    weights = torch.rand(2, 4, 2, 3, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        sample_levels(value, LEVELS, locations, weights), loop(value, locations, weights)
    )


def gradients(sample, value, locations, weights):
    inputs = [tensor.clone().requires_grad_() for tensor in (value, locations, weights)]
    output = sample(inputs[0], LEVELS, inputs[1], inputs[2])
    return output, *torch.autograd.grad(
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum(), inputs
    )


@pytest.mark.parametrize("sample", [sample_bags, gather_levels])
@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0], ids=["inside", "over the border", "far outside"])
def test_other_forms_give_the_numbers_and_all_gradients_of_grid_sample(sample, spread):
    generator = torch.Generator().manual_seed(7 + int(spread))
    value = torch.randn(2, POSITIONS, 2, 3, generator=generator, dtype=torch.float64)
    locations = (
        torch.rand(2, 4, 2, 3, 2, 2, generator=generator, dtype=torch.float64) * (1 + spread) - spread / 2
    )
    weights = torch.rand(2, 4, 2, 3, 2, generator=generator, dtype=torch.float64)
    plain, other = (gradients(form, value, locations, weights) for form in (sample_levels, sample))
    for ours, theirs in zip(other, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_bags_of_no_query_and_of_coordinates_that_are_not_finite():
    value = torch.randn(1, POSITIONS, 2, 3)
    locations, weights = torch.rand(1, 4, 2, 3, 2, 2), torch.rand(1, 4, 2, 3, 2)
    assert sample_bags(value, LEVELS, locations[:, :0], weights[:, :0]).shape == (1, 0, 6)
    without = weights.clone()
    without[0, 1, 0, 0, 0] = 0  # a point that is far away counts as nothing
    expected = sample_bags(value, LEVELS, locations, without)
    for far in (math.inf, -math.inf, 1e30):
        locations[0, 1, 0, 0, 0, 0] = far
        torch.testing.assert_close(sample_bags(value, LEVELS, locations, weights), expected)
    locations[0, 1, 0, 0, 0, 0] = math.nan
    unknown = sample_bags(value, LEVELS, locations, weights).isnan()
    assert unknown[0, 1, :3].all() and unknown.sum() == 3  # this query and head, no other


def _compilations(monkeypatch, limit):
    """Train and evaluate a compiled module on 20 canvases with 20 numbers of queries.

    Returns how often torch compiled, and how often the default form and the plain gathering ran.
    """
    counts = {"compiled": 0, "default": 0, "gathered": 0}

    def backend(graph, inputs):
        counts["compiled"] += 1
        return graph.forward

    def spy(name, form):
        def called(*inputs):
            if not torch.compiler.is_compiling():
                counts[name] += 1
            return form(*inputs)

        return called

    torch.compiler.reset()
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda form, **options: compile_(form, backend=backend, **options))
    monkeypatch.setattr(deformable, "sample_bags", spy("default", sample_bags))
    monkeypatch.setattr(deformable, "gather_levels", spy("gathered", gather_levels))
    module = DeformableAttention(16, 2, 2, 2)
    compile_sampling(module)
    with torch._dynamo.config.patch(recompile_limit=limit):
        for i in range(20):
            shapes = [(4 + i, 5 + (i * 7) % 11), (2 + i // 2, 3 + i % 3)]
            positions = sum(h * w for h, w in shapes)
            for queries, sides in ((positions, 2), (30 + 2 * i, 4)):
                inputs = (
                    torch.randn(2, queries, 16),
                    torch.rand(2, queries, 2, sides),
                    torch.randn(2, positions, 16),
                )
                module(*inputs, shapes, None).sum().backward()
                with torch.no_grad():
                    module(*inputs, shapes, None)
    torch.compiler.reset()
    return counts


@pytest.mark.slow
def test_compiling_takes_few_compilations_for_all_canvases_and_box_counts(monkeypatch):
    counts = _compilations(monkeypatch, limit=8)
    assert 1 <= counts["compiled"] <= 8 and counts["default"] == counts["gathered"] == 0


@pytest.mark.slow
def test_past_the_limit_of_torch_the_default_form_runs(monkeypatch):
    counts = _compilations(monkeypatch, limit=1)
    assert counts["compiled"] == 1 and counts["default"] > 0 and counts["gathered"] == 0


@pytest.mark.slow
@pytest.mark.skipif(
    " " in torch.__file__, reason="torch.compile cannot include its headers from a path with a space"
)
def test_compiled_gathering_in_a_module_gives_the_same_output_and_gradients():
    torch.manual_seed(0)
    module = DeformableAttention(16, 2, len(LEVELS), 2)
    torch.nn.init.normal_(module.sampling_offsets.weight, std=0.5)
    query, memory = torch.randn(2, 4, 16), torch.randn(2, POSITIONS, 16)
    references = torch.rand(2, 4, len(LEVELS), 2)
    padding = torch.arange(POSITIONS) >= torch.tensor([[POSITIONS], [POSITIONS - 5]])

    def run():
        module.zero_grad()
        output = module(query, references, memory, LEVELS, padding)
        output.square().sum().backward()
        return [output.detach(), *(parameter.grad.clone() for parameter in module.parameters())]

    plain = run()
    compile_sampling(module)
    for ours, theirs in zip(run(), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_center_and_corner_of_a_cell_by_hand():
    value = torch.zeros(1, POSITIONS, 1, 1)
    value[0, 35:47, 0, 0] = torch.arange(12.0)  # the middle level, 3 × 4
    weights = torch.zeros(1, 1, 1, 3, 1)
    weights[..., 1, 0] = 1.0
    for (x, y), expected in {
        (0.5 / 4, 0.5 / 3): 0.0,
        (2.5 / 4, 1.5 / 3): 6.0,
        (2.0 / 4, 1.0 / 3): (1 + 2 + 5 + 6) / 4,
        (1.0, 1.0): 11 / 4,  # the canvas' corner: three of four neighbors are outside
        (1.2, 0.5): 0.0,
    }.items():
        locations = torch.tensor([x, y]).expand(1, 1, 1, 3, 1, 2)
        assert sample_levels(value, LEVELS, locations, weights).item() == pytest.approx(expected, abs=1e-5)


def pair(points=3, seed=0):
    """Our module and transformers', with the same random weights."""
    torch.manual_seed(seed)
    config = GroundingDinoConfig(d_model=32, num_feature_levels=3)
    theirs = GroundingDinoMultiscaleDeformableAttention(config, num_heads=4, n_points=points)
    ours = DeformableAttention(32, 4, 3, points)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(theirs.state_dict())
    return ours.double(), theirs.double()


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_transformers(coordinates, padded):
    ours, theirs = pair()
    query = torch.randn(2, 6, 32, dtype=torch.float64)
    memory = torch.randn(2, POSITIONS, 32, dtype=torch.float64)
    references = torch.rand(2, 6, 3, coordinates, dtype=torch.float64)
    padding_mask = torch.rand(2, POSITIONS) < 0.3 if padded else None
    expected, _ = theirs(
        hidden_states=query,
        attention_mask=None if padding_mask is None else ~padding_mask,
        encoder_hidden_states=memory,
        reference_points=references,
        spatial_shapes=torch.tensor(LEVELS),
        spatial_shapes_list=LEVELS,
        level_start_index=torch.tensor([0, 35, 47]),
    )
    torch.testing.assert_close(ours(query, references, memory, LEVELS, padding_mask), expected)


def test_values_of_padding_are_never_read():
    ours, _ = pair()
    query = torch.randn(1, 6, 32, dtype=torch.float64)
    memory = torch.randn(1, POSITIONS, 32, dtype=torch.float64)
    references = torch.rand(1, 6, 3, 4, dtype=torch.float64)
    padding_mask = torch.rand(1, POSITIONS) < 0.3
    expected = ours(query, references, memory, LEVELS, padding_mask)
    memory[padding_mask] = 1e6
    torch.testing.assert_close(ours(query, references, memory, LEVELS, padding_mask), expected)


def test_initial_points_lie_on_rays_one_to_p_cells_away():
    """Deformable DETR, appendix A.4: with 4 heads the rays point right, down, left and up."""
    module = DeformableAttention(32, 4, 3, 2)
    offsets = module.sampling_offsets(torch.randn(1, 32)).view(4, 3, 2, 2)
    rays = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    expected = torch.stack([rays, 2 * rays], dim=1)[:, None].expand(4, 3, 2, 2)
    torch.testing.assert_close(offsets, expected, rtol=0, atol=1e-6)
    weights = module.attention_weights(torch.randn(1, 32)).view(4, 6).softmax(-1)
    torch.testing.assert_close(weights, torch.full((4, 6), 1 / 6))


def test_reference_points_equal_transformers():
    ratios = torch.tensor([[[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], [[4 / 7, 0.6], [0.5, 2 / 3], [0.5, 1.0]]])
    expected = GroundingDinoEncoder.get_reference_points(LEVELS, ratios, "cpu")
    torch.testing.assert_close(reference_points(LEVELS, ratios), expected)
