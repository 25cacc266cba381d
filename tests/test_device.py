"""The device and the precision of a computation."""

import os
import sys

import pytest
import torch

from groundtune.device import pick_device, pick_precision
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
