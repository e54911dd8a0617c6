"""Choice, availability and fastest precision of a device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16", "auto"]
PRECISIONS = ("float32", "bfloat16", "auto")
BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16")  # keys of torch.cpu.get_capabilities; products 6 and 2.7 times as fast


@contextlib.contextmanager
def float32_default() -> Iterator[None]:
    """Make float32 torch's default dtype inside, as a context or as the decorator of a constructor.

    Networks of the library are float32 whatever default the user's program has set: with
    ``torch.set_default_dtype(torch.float64)``, layers would otherwise have other initial weights and
    would not fit the data and the saved files.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def fast_precision(device: torch.device) -> str:
    """Return the precision with the fastest matrix products: "bfloat16" or "float32".

    bfloat16 is the fastest if the hardware supports it. On a CPU, `torch.cpu.get_capabilities` is
    searched for AMX and AVX-512 BF16. If PyTorch is too old to have this function, the answer is
    "float32".
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
    """Raise if the device is unavailable.

    Raises:
        ValueError: if this machine or this build of torch lacks the device.
    """
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device: expected an available device such as 'cpu', got {str(device)!r} ({reason})") from error


def choose_device(device: str | torch.device) -> torch.device:
    """Turn a device or its name into a device; "auto" is an NVIDIA GPU if there is one, else the CPU.

    Apple's GPU ("mps") is used only if it is named, as torch lacks some operations there.

    Raises:
        ValueError: if this machine or this build of torch lacks the device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device)
    return torch.device(device)


def missing_operation(error: BaseException) -> str | None:
    """Return advice if torch raised an error because a device lacks an operation or a data type, else None.

    On Apple's GPU torch raises NotImplementedError for an operation, and TypeError for float64.
    """
    message = str(error).splitlines()[0] if str(error) else ""
    if not isinstance(error, NotImplementedError | TypeError) or "mps" not in message.lower():
        return None
    return (
        f"device: this build of torch lacks an operation on 'mps' ({message}); set PYTORCH_ENABLE_MPS_FALLBACK=1 to run it on "
        "the CPU, or use device 'cpu' (--device cpu)"
    )
