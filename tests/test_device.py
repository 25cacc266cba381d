"""The device and the precision of a computation."""

import logging
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from groundtune.device import (
    autocast,
    float32_mode,
    peak_memory,
    pick_device,
    pick_precision,
    reset_peak_memory,
)
from groundtune.engine import checkpoint
from groundtune.environment import describe
from groundtune.errors import ConfigError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpu please", "'gpu please' is not a device; expected auto, cpu, cuda"),
        ("cuda", "'cuda' is not available here; torch sees only the CPU. Use --device auto"),
        ("cuda:3", "'cuda:3' is not available here"),
        ("mps", "'mps' is not available here"),
    ],
)
def test_pick_device_refuses(name: str, message: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    with pytest.raises(ConfigError, match="^device: " + message) as error:
        pick_device(name)
    assert error.value.exit_code == 2


def test_pick_device(monkeypatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    assert pick_device("auto") == pick_device("cpu") == CPU
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda")
    )
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert pick_device("auto") == torch.device("cuda") and pick_device("cuda:1") == torch.device("cuda:1")
    assert pick_device("cpu") == CPU
    with pytest.raises(ConfigError, match=r"'cuda:2' is not available here; torch sees cuda \(2\)"):
        pick_device("cuda:2")


@pytest.mark.parametrize(
    ("capability", "wanted"), [("amx_bf16", "bf16"), ("avx512_bf16", "bf16"), ("avx2", "fp32"), ("", "fp32")]
)
def test_auto_precision_is_bf16_only_where_the_cpu_computes_in_it(
    capability: str, wanted: str, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True, "avx512_bf16 ": True})
    assert pick_precision("auto", CPU) == wanted
    assert (pick_precision("fp32", CPU), pick_precision("bf16", CPU)) == ("fp32", "bf16")


@pytest.mark.skipif(sys.platform != "linux", reason="CUDA's allocator has expandable segments on Linux only")
@pytest.mark.parametrize("own", [None, "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_memory_of_a_gpu_grows_in_segments_unless_the_user_chose_otherwise(own, monkeypatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "max_split_size_mb:128")  # restored after the test
        if name != own:
            monkeypatch.delenv(name)
    pick_device("cpu")
    assert os.environ.get("PYTORCH_ALLOC_CONF") == {
        None: "expandable_segments:True",
        "PYTORCH_ALLOC_CONF": "max_split_size_mb:128",
    }.get(own)


def cards(monkeypatch, *capabilities: tuple[int, int]) -> None:
    """NVIDIA's cards with these compute capabilities, the first one being the current one."""
    by_index = lambda device: capabilities[torch.device(device).index or 0]  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_capability", by_index)


@pytest.mark.parametrize(
    ("capability", "wanted", "emulated"),
    [
        ((6, 1), "fp32", {"tf32", "bf16", "fp16"}),  # GTX 1080
        ((7, 0), "fp16", {"tf32", "bf16"}),  # V100
        ((7, 5), "fp16", {"tf32", "bf16"}),  # T4
        ((8, 0), "bf16", set()),  # A100
        ((8, 9), "bf16", set()),  # RTX 4090, L4
        ((9, 0), "bf16", set()),  # H100
        ((12, 0), "bf16", set()),  # RTX 5090
    ],
)
def test_precision_by_capability(capability, wanted: str, emulated: set[str], monkeypatch, caplog) -> None:
    cards(monkeypatch, capability)
    device = torch.device("cuda")
    assert pick_precision("auto", device) == wanted and not caplog.records
    for name in ("fp32", "tf32", "bf16", "fp16"):
        caplog.clear()
        assert pick_precision(name, device) == name
        assert [f"--precision {name}: cuda has no hardware" in text for text in caplog.messages] == (
            [True] if name in emulated else []
        )


def test_the_card_that_is_used_decides(monkeypatch) -> None:
    cards(monkeypatch, (7, 5), (8, 6))
    assert [pick_precision("auto", torch.device(f"cuda:{i}")) for i in range(2)] == ["fp16", "bf16"]


@pytest.mark.parametrize(("supported", "wanted"), [(True, "bf16"), (False, "fp32")])
def test_precision_of_other_accelerators(supported: bool, wanted: str, monkeypatch, caplog) -> None:
    monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda: supported)
    assert pick_precision("auto", torch.device("xpu")) == wanted
    assert pick_precision("auto", torch.device("mps")) == "fp32"
    assert pick_precision("fp16", torch.device("mps")) == "fp16" and not caplog.records


@pytest.mark.parametrize("name", ["bf16", "fp16", "tf32"])
def test_a_cpu_warns_of_what_it_emulates(name: str, monkeypatch, caplog) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    caplog.set_level(logging.WARNING, "groundtune")
    assert pick_precision(name, CPU) == name
    assert (
        f"--precision {name}: cpu has no hardware for it" in caplog.text and "auto takes fp32" in caplog.text
    )


@pytest.mark.parametrize(
    ("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", None), ("tf32", None)]
)
def test_autocast(name: str, dtype: torch.dtype | None) -> None:
    with autocast(CPU, name):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (dtype or torch.float32)


SETTINGS = [
    "pass",
    "torch.set_float32_matmul_precision('high')",
    "torch.set_float32_matmul_precision('medium')",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.cudnn.allow_tf32 = False",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
    "torch.backends.fp32_precision = 'tf32'",
]
VIEW = """
import sys, torch
from groundtune.device import float32_mode
def parts():
    return torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn, torch.backends.mkldnn.matmul
def view():
    def read(of):
        try:
            return of()
        except RuntimeError:  # torch refuses to name what its other interface has set
            return None
    old = torch.get_float32_matmul_precision, lambda: torch.backends.cuda.matmul.allow_tf32
    return [*(read(of) for of in old), *(part.fp32_precision for part in parts())]
exec(sys.argv[1])
before = view()
for precision, inside in (("fp32", "ieee"), ("bf16", "ieee"), ("tf32", "tf32")):
    with float32_mode("cuda", precision):
        assert [part.fp32_precision for part in parts()[:3]] == [inside] * 3, view()
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is (precision == "tf32")
    after = view()
    assert all(b is None or a == b for a, b in zip(after, before)), (before, after)
"""


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_float32_mode_is_left_as_it_was(setting: str) -> None:
    """Whichever of torch's interfaces has set it; in a process of its own, because it is global."""
    ended = subprocess.run([sys.executable, "-c", VIEW, setting], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_float32_mode_is_both_off_or_both_on_and_restored_after_an_error() -> None:
    def flags() -> tuple[bool, bool]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = flags()
    with pytest.raises(ZeroDivisionError), float32_mode("cuda", "tf32"):
        assert flags() == (True, True)
        with float32_mode("cuda", "fp32"):
            assert flags() == (False, False)
        assert flags() == (True, True)
        raise ZeroDivisionError
    assert flags() == before
    with float32_mode("cpu", "tf32"):
        assert flags() == before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux forgets a peak")
def test_peak_memory_is_that_since_the_reset() -> None:
    with mmap.mmap(-1, 320_000_000) as large:  # not by malloc, which may keep it
        large.write(b"1" * len(large))
        high = peak_memory(CPU)
    reset_peak_memory(CPU)
    assert peak_memory(CPU) < high - 200e6


def test_peak_memory_of_a_card_is_reset(monkeypatch) -> None:
    peaks = {"now": 5, "peak": 9}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peaks.update(peak=peaks["now"]))
    device = torch.device("cuda:0")
    assert peak_memory(device) == 9
    reset_peak_memory(device)
    assert peak_memory(device) == 5


def test_each_process_of_a_launcher_has_its_own_card(monkeypatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: cuda)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda:1")
    assert (pick_device("cuda:0"), pick_device("cpu")) == (torch.device("cuda:0"), CPU)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)  # SLURM shows a task its own only
    assert pick_device("auto") == torch.device("cuda:0")


@pytest.mark.parametrize(
    ("state", "there"),
    [
        ({"cuda": [torch.zeros(16)] * 2}, r"cuda \(2\)"),
        ({"cuda": [], "xpu": [torch.zeros(16)]}, r"xpu \(1\)"),
    ],
)
def test_random_state_of_other_devices_is_told(state, there: str) -> None:
    message = checkpoint.set_random_state(checkpoint.random_state() | state)
    assert re.match(f"The random state is of {there}, this is a CPU: dropout", message)


def test_random_state_of_a_card_is_restored(monkeypatch) -> None:
    class Card:
        states = [torch.tensor([1]), torch.tensor([2])]

        def get_rng_state_all(self) -> list[torch.Tensor]:
            return list(self.states)

        def set_rng_state_all(self, states: list[torch.Tensor]) -> None:
            self.states = states

    card, xpu = Card(), torch.device("xpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: xpu)
    monkeypatch.setattr(torch, "get_device_module", lambda device: card)
    state = checkpoint.random_state()
    card.states = [torch.tensor([3]), torch.tensor([4])]
    assert checkpoint.set_random_state(state) == ""
    assert [int(part) for part in card.states] == [1, 2]
    card.states = card.states[:1]
    assert "of xpu (2), this is xpu (1)" in checkpoint.set_random_state(state)


def test_random_state_of_a_cpu_has_nothing_to_tell() -> None:
    assert checkpoint.set_random_state(checkpoint.random_state()) == ""


def test_env_says_what_a_card_has_and_will_use(monkeypatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: cuda)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (15.0e9, 15.8e9))
    cards(monkeypatch, (7, 5), (7, 5))
    found = describe()
    assert found["device"] == "cuda (Tesla T4, 2 GPU(s))"
    assert found["precision auto"] == "fp16; there is hardware for fp16, fp32"
    assert found["memory"] == "15.0 of 15.8 GB are free"
    assert "about 4 of 800 x 1333 with Swin-T (computed)" in found["images per step"]  # (14.25 - 1.6) / 2.6
