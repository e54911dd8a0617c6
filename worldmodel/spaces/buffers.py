"""Float64 constants in modules that move to any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Float64Buffers(nn.Module):
    """A module with float64 buffers that become float32 on a device without float64 (Apple's GPU)."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        try:
            return super()._apply(fn, recurse)
        except TypeError:
            for name, buffer in list(self.named_buffers(recurse=False)):
                if buffer.dtype is torch.float64:
                    setattr(self, name, buffer.float())
            return super()._apply(fn, recurse)
