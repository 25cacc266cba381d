"""An emulated CUDA device with real numbers: a plugin for pytest, in processes of its own.

An `EmulatedTensor` says that it is on cuda:0 and has the dispatch keys of CUDA, so that autocast and
branches by device are those of a GPU; the CPU tensor inside does the arithmetic. An operation on
tensors of both devices is an error, as with CUDA, and `Card` counts kernels and the operations for
which CUDA makes the host wait. Kernels' own numerics, streams, timing and memory are not emulated.

guard.cpp has to be loaded before torch, and stays: so no other test runs in such a process.
"""

import contextlib
import ctypes
import os
import traceback
from collections import Counter

ctypes.CDLL(os.environ["GROUNDTUNE_EMULATOR"], ctypes.RTLD_GLOBAL)

import pytest  # noqa: E402
import torch  # noqa: E402
from torch.overrides import TorchFunctionMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing  # noqa: E402
from torch.utils._pytree import tree_flatten, tree_map  # noqa: E402

DEVICE = torch.device("cuda", 0)
MEMORY = 80 << 30
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique_consecutive",
    "aten::_unique2", "aten::unique_dim", "aten::equal", "aten::is_nonzero",
}  # fmt: skip
NO_KERNEL = set(  # memory without values, and views
    "empty empty_like empty_strided new_empty new_empty_strided view expand permute transpose t unsqueeze "
    "squeeze select slice split split_with_sizes detach alias as_strided unbind _unsafe_view _reshape_alias "
    "unfold diagonal lift_fresh chunk tensor_split".split()
)


class MixedDevices(RuntimeError):
    """An operation on tensors of the CPU and of the card."""


class Card:
    """What the card was asked for since `reset`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.kernels = 0
        self.waits: Counter[str] = Counter()  # what and where, "file.py:line"

    def wait(self, what: str) -> None:
        self.waits[f"{what} at {_place()}"] += 1


CARD = Card()


def _place() -> str:
    """The innermost line of the package."""
    for frame in reversed(traceback.extract_stack()):
        if "/src/groundtune/" in frame.filename:
            return f"{frame.filename.split('/src/groundtune/')[1]}:{frame.lineno}"
    return "a test"


class EmulatedTensor(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, real):
        meta = torch.empty_strided(real.size(), real.stride(), dtype=real.dtype, device="meta")
        made = torch.Tensor._make_subclass(
            cls, meta, False, dispatch_device=True, device_for_backend_keys=DEVICE
        )
        made.real_tensor = real
        return made

    @property
    def device(self):
        return DEVICE

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def __repr__(self):
        return f"EmulatedTensor({self.real_tensor!r})"

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __reduce_ex__(self, protocol):
        CARD.wait("copy to the host")
        return self.real_tensor.detach().clone().__reduce_ex__(protocol)

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = EmulatedTensor(self.real_tensor.detach().clone())
            parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if parameter else copied
        return memo[id(self)]


def _real(value):
    return value.real_tensor if isinstance(value, EmulatedTensor) else value


def _emulated(value):
    plain = isinstance(value, torch.Tensor) and not isinstance(value, EmulatedTensor)
    return EmulatedTensor(value) if plain else value


def _run(func, args, kwargs):
    """Run an operation on the CPU tensors inside, after its devices are checked and its costs counted."""
    packet, wanted = func._schema.name, kwargs.get("device")
    if func is torch.ops.prim.device.default:
        return DEVICE
    if wanted is not None and torch.device(wanted).type == "meta":
        return func(*args, **kwargs)
    if packet == "aten::copy_":
        return _copy_into(*args)
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
    emulated = any(isinstance(t, EmulatedTensor) for t in tensors)
    on_card = emulated if wanted is None else torch.device(wanted).type == "cuda"
    if packet == "aten::_to_copy":
        return _copy(func, args, kwargs, on_card)
    if emulated:
        _check_devices(packet, args, tensors)
    if emulated or on_card:
        _count(func, packet, args)
    passed = {k: v for k, v in kwargs.items() if k not in ("device", "pin_memory")}
    if wanted is not None:
        passed["device"] = torch.device("cpu")
    result = func(*tree_map(_real, args), **tree_map(_real, passed))
    if (
        not on_card
        and not emulated
        or packet in ("aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero")
    ):
        return result
    result = tree_map(_emulated, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if emulated and wanted is None else result


def _copy(func, args, kwargs, to_card):
    """Copy or convert a tensor. `non_blocking` copies to the card do not wait."""
    from_card = isinstance(args[0], EmulatedTensor)
    if from_card and not to_card:
        CARD.wait("copy to the host")
    elif to_card and not from_card and not kwargs.get("non_blocking"):
        CARD.wait("copy to the card")
    CARD.kernels += to_card
    passed = {k: v for k, v in kwargs.items() if k not in ("device", "non_blocking", "pin_memory")}
    result = func(*map(_real, args), **passed)
    result = result.clone() if any(result is _real(arg) for arg in args) else result
    return EmulatedTensor(result) if to_card else result


def _copy_into(target, source, non_blocking=False):
    to_card = isinstance(target, EmulatedTensor)
    if to_card != isinstance(source, EmulatedTensor):
        CARD.wait("copy to the card" if to_card else "copy to the host")
    CARD.kernels += to_card
    with torch.no_grad():
        _real(target).copy_(_real(source))
    return target


def _check_devices(packet, args, tensors):
    """CPU tensors may be indices of the card's tensors, by a copy, and they may have no dimension."""
    strangers = [
        t for t in tensors if not isinstance(t, EmulatedTensor) and t.device.type != "meta" and t.dim()
    ]
    if packet in INDEXING and isinstance(args[0], EmulatedTensor):
        indices = [index for index in args[1] if isinstance(index, torch.Tensor)]
        for index in indices:
            if not isinstance(index, EmulatedTensor):
                CARD.wait("copy of an index to the card")
        strangers = [t for t in strangers if not any(t is index for index in indices)]
    if strangers:
        shapes = [tuple(t.shape) for t in strangers]
        raise MixedDevices(f"{packet} at {_place()}: expected all tensors on cuda:0, got {shapes} on the CPU")


def _count(func, packet, args):
    CARD.kernels += func.__name__.split(".")[0] not in NO_KERNEL
    indices = args[1] if packet in INDEXING else []
    masks = any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in indices)
    filled = packet != "aten::index" and masks and args[2].numel() == 1  # a masked fill
    if packet in WAITING or (masks and not filled):
        CARD.wait(packet.removeprefix("aten::"))


class _DispatchMode(TorchDispatchMode):
    """Sees the operations that make tensors on the card out of none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def __enter__(self):
        self.lifting = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(self.lifting)
        return super().__exit__(*error)


class _FunctionMode(TorchFunctionMode):
    """Replaces the functions that do not reach the dispatcher."""

    def __init__(self, in_backward=False):
        super().__init__()
        self.in_backward = in_backward

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            return args[0].to(DEVICE)
        if func is torch.Tensor.new_tensor and isinstance(args[0], EmulatedTensor):
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype), device=DEVICE)
        if func is torch.Tensor.tolist and isinstance(args[0], EmulatedTensor):
            CARD.wait("tolist")
            return args[0].real_tensor.detach().tolist()
        backward = func in (torch.Tensor.backward, torch.autograd.backward, torch.autograd.grad)
        # a recomputation in the backward pass computes too
        with _FunctionMode(True) if backward and not self.in_backward else contextlib.nullcontext():
            return func(*args, **kwargs)


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, **options):
    """`scaled_dot_product_attention` of emulated tensors, as sums that all run through `_run`."""
    if not any(isinstance(t, EmulatedTensor) for t in (query, key, value)):
        return PLAIN_ATTENTION(query, key, value, attn_mask, dropout_p, **options)
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (t.to(torch.get_autocast_dtype("cuda")) for t in (query, key, value))
    with torch.autocast("cuda", enabled=False):
        scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            scores = scores + attn_mask
        return scores.softmax(-1).to(query.dtype) @ value


PLAIN_ATTENTION = torch.nn.functional.scaled_dot_product_attention
PLAIN_MOVE = torch.nn.Module.to


def _move_module(self, *args, **kwargs):
    """`Module.to` that keeps the identity of parameters, as it does for a card."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    here = [*self.parameters(), *self.buffers()]
    if device is not None and dtype is None and all(t.device.type == device.type for t in here):
        return self
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return PLAIN_MOVE(self, *args, **kwargs)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@pytest.fixture
def card(monkeypatch):
    """Inside, torch sees one CUDA device."""
    import groundtune.device  # noqa: F401  # imports everything that looks for a device while imported

    torch.autograd.set_multithreading_enabled(False)
    monkeypatch.setattr(torch.nn.Module, "to", _move_module)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", _attention)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda")
    )
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "is_bf16_supported": True,
        "get_device_capability": (9, 0), "get_device_name": "Emulated", "mem_get_info": (MEMORY, MEMORY),
        "max_memory_allocated": 1 << 20, "get_rng_state_all": [torch.zeros(16, dtype=torch.uint8)],
    }  # fmt: skip
    nothing = "_lazy_init set_device set_rng_state_all manual_seed_all empty_cache synchronize reset_peak_memory_stats"
    for name, answer in (answers | dict.fromkeys(nothing.split())).items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    CARD.reset()
    with _FunctionMode(), _DispatchMode():
        yield CARD
