"""Multi-scale deformable attention as one Triton kernel for each direction, for NVIDIA GPUs.

`sample_fused` gives the numbers of `deformable.sample_levels` without its intermediate tensors,
each of which is four times as large as the result. Values may be float32, bfloat16 or float16;
points, weights and sums are float32. A program samples for `_BLOCK` queries of one head. The
backward pass adds to the gradient of the values by atomics, in an order that differs between runs.

Triton comes with torch's builds for CUDA; the kernels are compiled at their first use. For
`torch.compile` each direction is one operator.
"""

import importlib.util
import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from groundtune.errors import first_line

if TYPE_CHECKING or importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl
else:
    triton = None

_BLOCK = 16  # queries


@torch.compiler.assume_constant_result
@lru_cache
def kernel_problem(device: torch.device) -> str:
    """Return what prevents the kernels on a device, by running them once; "" if nothing does."""
    if triton is None:
        return "triton is not installed"
    value, point = torch.full((1, 1, 1, 1), 3.0, device=device), torch.full((1,) * 5, 0.5, device=device)
    inputs = value, [1, 1], point[..., None].repeat(1, 1, 1, 1, 1, 2), point
    try:
        with torch.no_grad():
            output, (of_value, *_) = _sample(*inputs), _sample_backward(value[0], *inputs, True)
            right = output.item() == of_value.item() == 1.5
    except Exception as error:  # no C compiler, no header files of Python, an old GPU, ...
        return first_line(error)
    return "" if right else "its results are wrong on this GPU"


def sample_fused(
    value: Tensor, level_shapes: list[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Do the same as `sample_levels`; the result has the type of `value`."""
    sides = list(itertools.chain.from_iterable(level_shapes))
    return _sample(value.contiguous(), sides, locations.float().contiguous(), weights.float().contiguous())


@torch.library.custom_op("groundtune::sample", mutates_args=())
def _sample(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    output = value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])
    if output.numel():
        grid, sizes = _launch(value, locations)
        inputs = value, _levels(tuple(sides), value.device), locations, weights
        with torch.cuda.device_of(value):
            _forward[grid](*inputs, output, *sizes)
    return output


@_sample.register_fake
def _(value: Tensor, sides: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return value.new_empty(*locations.shape[:2], value.shape[2] * value.shape[3])


@torch.library.custom_op("groundtune::sample_backward", mutates_args=())
def _sample_backward(
    gradient: Tensor,
    value: Tensor,
    sides: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    needs_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    of_value = torch.zeros(value.shape if needs_value else (0,), dtype=torch.float32, device=value.device)
    of_locations, of_weights = torch.zeros_like(locations), torch.zeros_like(weights)
    if gradient.numel():
        grid, sizes = _launch(value, locations)
        inputs = value, _levels(tuple(sides), value.device), locations, weights, gradient
        with torch.cuda.device_of(value):
            _backward[grid](*inputs, of_value, of_locations, of_weights, *sizes, needs_value)
    return of_value.to(value.dtype), of_locations, of_weights


@_sample_backward.register_fake
def _(
    gradient: Tensor,
    value: Tensor,
    sides: Sequence[int],
    locations: Tensor,
    weights: Tensor,
    needs_value: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    of_value = value.new_empty(value.shape if needs_value else (0,))
    return of_value, torch.empty_like(locations), torch.empty_like(weights)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    value, ctx.sides, locations, weights = inputs
    ctx.save_for_backward(value, locations, weights)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor]:
    value, locations, weights = ctx.saved_tensors
    needs_value = ctx.needs_input_grad[0]
    inputs = value, ctx.sides, locations, weights
    of_value, of_locations, of_weights = _sample_backward(gradient.contiguous(), *inputs, needs_value)
    return of_value if needs_value else None, None, of_locations, of_weights


_sample.register_autograd(_differentiate, setup_context=_save)


@lru_cache(maxsize=256)
def _levels(sides: tuple[int, ...], device: torch.device) -> Tensor:
    """Return (L, 3) int32: height, width and first position of each level."""
    shapes = list(zip(sides[::2], sides[1::2], strict=True))
    starts = itertools.accumulate((h * w for h, w in shapes), initial=0)
    rows = [[h, w, start] for (h, w), start in zip(shapes, starts, strict=False)]
    return torch.tensor(rows, dtype=torch.int32).to(device, non_blocking=True)


def _launch(value: Tensor, locations: Tensor) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Return the grid of programs, and the sizes that both kernels take."""
    batch, positions, heads, width = value.shape
    queries, _, levels, points = locations.shape[1:5]
    sizes = queries, positions, heads, levels, points, width, triton.next_power_of_2(width), _BLOCK
    return (triton.cdiv(queries, _BLOCK), batch * heads), sizes


if triton is not None:

    @triton.jit
    def _corner(x, y, w, h, start, corner: tl.constexpr):  # type: ignore[no-untyped-def]
        """Return a corner's row in the values, whether it has one, and its shares along x and y."""
        left, top = tl.floor(x), tl.floor(y)
        column, line = left + corner % 2, top + corner // 2
        inside = (column >= 0) & (column < w) & (line >= 0) & (line < h)  # false for NaN
        row = tl.where(inside, line, 0).to(tl.int32) * w + tl.where(inside, column, 0).to(tl.int32)
        x_share = x - left if corner % 2 else 1 - (x - left)
        y_share = y - top if corner // 2 else 1 - (y - top)
        return start + row, inside, x_share, y_share

    @triton.jit
    def _point(locations, weights, levels, at, level, here):  # type: ignore[no-untyped-def]
        """Return a point's cell coordinates and weight, and the size and start of its level."""
        h, w = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        x = tl.load(locations + 2 * at, mask=here, other=0.0) * w - 0.5
        y = tl.load(locations + 2 * at + 1, mask=here, other=0.0) * h - 0.5
        # Infinite coordinates count as nothing, as all others outside; NaN passes both comparisons.
        x = tl.where(x < -2, -2.0, tl.where(x > w + 1, w + 1.0, x))
        y = tl.where(y < -2, -2.0, tl.where(y > h + 1, h + 1.0, y))
        weight = tl.load(weights + at, mask=here, other=0.0)
        return x, y, weight, h, w, tl.load(levels + 3 * level + 2)

    @triton.jit(do_not_specialize=["queries", "positions"])
    def _forward(  # type: ignore[no-untyped-def]
        value, levels, locations, weights, output, queries, positions,
        HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
        WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr,
    ):  # fmt: skip
        batch, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
        query, channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PADDED)
        here, used = query < queries, (channel < WIDTH)[None]
        values = value + ((batch.to(tl.int64) * positions * HEADS + head) * WIDTH + channel)[None]
        own = (batch.to(tl.int64) * queries + query) * HEADS + head
        total = tl.zeros((BLOCK, PADDED), dtype=tl.float32)
        for level in range(LEVELS):
            for point in range(POINTS):
                at = own * (LEVELS * POINTS) + level * POINTS + point
                x, y, weight, h, w, start = _point(locations, weights, levels, at, level, here)
                for corner in tl.static_range(4):
                    row, inside, x_share, y_share = _corner(x, y, w, h, start, corner)
                    mask = (inside & here)[:, None] & used
                    read = tl.load(values + row[:, None] * (HEADS * WIDTH), mask=mask, other=0.0)
                    total += read.to(tl.float32) * (x_share * y_share * weight)[:, None]
        where = output + own[:, None] * WIDTH + channel[None]
        tl.store(where, total.to(output.dtype.element_ty), mask=here[:, None] & used)

    @triton.jit(do_not_specialize=["queries", "positions"])
    def _backward(  # type: ignore[no-untyped-def]
        value, levels, locations, weights, gradient, of_value, of_locations, of_weights,
        queries, positions, HEADS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr,
        WIDTH: tl.constexpr, PADDED: tl.constexpr, BLOCK: tl.constexpr, NEEDS_VALUE: tl.constexpr,
    ):  # fmt: skip
        batch, head = tl.program_id(1) // HEADS, tl.program_id(1) % HEADS
        query, channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, PADDED)
        here, used = query < queries, (channel < WIDTH)[None]
        first = ((batch.to(tl.int64) * positions * HEADS + head) * WIDTH + channel)[None]
        own = (batch.to(tl.int64) * queries + query) * HEADS + head
        where = gradient + own[:, None] * WIDTH + channel[None]
        grad = tl.load(where, mask=here[:, None] & used, other=0.0).to(tl.float32)
        for level in range(LEVELS):
            for point in range(POINTS):
                at = own * (LEVELS * POINTS) + level * POINTS + point
                x, y, weight, h, w, start = _point(locations, weights, levels, at, level, here)
                of_weight = tl.zeros((BLOCK,), dtype=tl.float32)
                of_x, of_y = of_weight, of_weight
                for corner in tl.static_range(4):
                    row, inside, x_share, y_share = _corner(x, y, w, h, start, corner)
                    mask = (inside & here)[:, None] & used
                    cell = first + row[:, None] * (HEADS * WIDTH)
                    read = tl.load(value + cell, mask=mask, other=0.0).to(tl.float32)
                    along = tl.sum(read * grad, 1)
                    of_weight += along * x_share * y_share
                    of_x += along * y_share * (1.0 if corner % 2 else -1.0)
                    of_y += along * x_share * (1.0 if corner // 2 else -1.0)
                    if NEEDS_VALUE:
                        share = grad * (x_share * y_share * weight)[:, None]
                        tl.atomic_add(of_value + cell, share, mask=mask, sem="relaxed")
                tl.store(of_weights + at, of_weight, mask=here)
                tl.store(of_locations + 2 * at, of_x * weight * w, mask=here)
                tl.store(of_locations + 2 * at + 1, of_y * weight * h, mask=here)
