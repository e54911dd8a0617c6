"""What the machine is good at: bfloat16 where it has units for it, and memory that stays with the process."""

from __future__ import annotations

import torch

PRECISIONS = ("float32", "bfloat16", "auto")
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


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return the precision that a name stands for on a device.

    Args:
        precision: "float32", "bfloat16", or "auto" for the faster one.
        device: where the matrix products are.

    Returns:
        "float32" or "bfloat16".

    Raises:
        ValueError: if there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected 'float32', 'bfloat16' or 'auto', got {precision!r}")
    return fast_precision(device) if precision == "auto" else precision


def check_device(device: str | torch.device) -> None:
    """Refuse a device that this machine or this build of torch has not.

    Raises:
        ValueError: naming the device.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: expected one that torch has here, such as 'cpu', got {str(device)!r} ({reason})") from error
