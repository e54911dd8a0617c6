"""Optional packages, and the extras of this library that bring them."""

from __future__ import annotations

import importlib.util

EXTRAS = {  # extra: the modules that it brings
    "search": ("cma",),
    "plots": ("matplotlib",),
    "minari": ("minari",),
    "sb3": ("stable_baselines3",),
    "torchrl": ("torchrl",),
    "doom": ("vizdoom",),
    "box2d": ("Box2D", "pygame"),
    "video": ("imageio_ffmpeg",),
    "formats": ("pyarrow", "h5py", "av"),
    "tensorboard": ("tensorboard",),
    "dask": ("distributed",),
    "hub": ("huggingface_hub",),
    "play": ("aiohttp",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}


def has_extra(extra: str) -> bool:
    """Return whether the modules of an extra are installed."""
    return all(map(_is_installed, EXTRAS[extra]))


def missing_extra(*extras: str, advice: str = "") -> ImportError:
    """Return the error for extras that are not installed.

    Args:
        extras: their names.
        advice: what else helps, such as "or use method='openai-es'".
    """
    names = ",".join(extras)
    modules = ", ".join(module for extra in extras for module in EXTRAS[extra])
    text = f"{modules}: expected the extra {names}, which is not installed; pip install 'worldmodel[{names}]'"
    return ImportError(f"{text} (from a clone: pip install -e '.[{names}]'){advice and '; '}{advice}")


def require_extras(*extras: str, advice: str = "") -> None:
    """Raise if an extra is not installed.

    Raises:
        ImportError: naming the extras that are missing.
    """
    missing = [extra for extra in extras if not has_extra(extra)]
    if missing:
        raise missing_extra(*missing, advice=advice)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # imports of the module are blocked
        return False
