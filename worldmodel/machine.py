"""What the machine is good at: bfloat16 where it has units for it, and memory that stays with the process."""

from __future__ import annotations

import ctypes
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST_INT = 2**31 - 1
BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16")  # names of torch.cpu.get_capabilities; products are 6 and 2.7 times as fast


def fast_precision(device: torch.device) -> str:
    """The precision in which matrix products are fastest: "bfloat16" where the device has units for it, else "float32".

    A CPU is asked by `torch.cpu.get_capabilities` for AMX and for AVX-512 BF16; where PyTorch is too old to say, it counts as
    one without.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return "bfloat16" if any(capabilities.get(name) for name in BFLOAT16_UNITS) else "float32"


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, for the rest of the process, rather than give it back to the system.

    By default it gives back every large block at once, and the next one of the same size is paid for again by a page fault for
    each 4 KB: a fifth of the time of training M at the paper's Doom size (dev/LOG.md). The price is that a process keeps the
    most memory that it ever used. For scripts, which own their process; nothing in this package calls it.

    Returns:
        Whether it did: True with glibc (most of Linux), False elsewhere, where nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(parameter, LARGEST_INT) == 1 for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))
