"""Fastest precision of a device, and memory that stays in the process."""

import subprocess
import sys

import pytest
import torch

from worldmodel.runtime import choose_device, fast_precision, keep_freed_memory, missing_operation, process

PROGRAM = """
import resource, sys, torch
from worldmodel.runtime import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
counts = []
for _ in range(40):  # small blocks split the freed ones at first, so the heap grows by a few blocks
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(64 * 2**20, dtype=torch.uint8).fill_(0)
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(counts[-10:]))
"""


def faults(choice):
    return int(subprocess.run([sys.executable, "-c", PROGRAM, choice], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="page faults are counted on Linux")
def test_freed_memory_is_reused_without_page_faults():
    assert faults("keep") < 100 < faults("return")


def test_other_systems_are_not_changed(monkeypatch):
    monkeypatch.setattr(process.sys, "platform", "darwin")
    assert not keep_freed_memory()


@pytest.mark.parametrize(
    ("units", "expected"), [("amx_bf16", "bfloat16"), ("avx512_bf16", "bfloat16"), ("avx512_vnni", "float32")]
)
def test_bfloat16_is_fastest_on_a_cpu_with_units_for_it(monkeypatch, units, expected):
    found = dict.fromkeys(("amx_bf16", "avx512_bf16", "avx512_vnni"), False) | {units: True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert fast_precision(torch.device("cpu")) == expected


def test_an_old_pytorch_means_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert fast_precision(torch.device("cpu")) == "float32"


def test_other_devices_keep_float32():
    assert fast_precision(torch.device("meta")) == "float32"


def test_auto_is_a_gpu_if_there_is_one_and_never_apples(monkeypatch):
    for available, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        assert choose_device("auto") == torch.device(expected)


def test_apples_gpu_is_used_if_it_is_named(monkeypatch):
    empty = torch.empty

    def stand_in(*size, device=None, **options):
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", stand_in)
    assert choose_device("mps") == torch.device("mps")


@pytest.mark.parametrize("device", ["cuda:99", "mps", "tpu", ""])
def test_a_device_that_this_machine_lacks_is_rejected(device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(ValueError, match="device: expected an available device such as 'cpu', got"):
        choose_device(device)


@pytest.mark.parametrize(
    "error",
    [
        NotImplementedError("The operator 'aten::linalg_eigh' is not currently implemented for the MPS device."),
        TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64."),
    ],
)
def test_what_torch_lacks_on_apples_gpu_is_explained(error):
    assert "--device cpu" in missing_operation(error)


def test_other_errors_are_not_explained_by_the_device():
    assert missing_operation(TypeError("expected an int")) is None
    assert missing_operation(ValueError("mps")) is None
