"""Autocast of tensors on the meta device, which torch's own passes over."""

from __future__ import annotations

from types import TracebackType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

# what is computed in the coarser dtype; what autocast widens, as a softmax, models widen themselves
PRODUCTS = {
    nn.functional.linear,
    nn.functional.conv1d,
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
    torch.einsum,
    Tensor.matmul,
    Tensor.mm,
    Tensor.bmm,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
}


class ImaginedAutocast(TorchFunctionMode):
    """Takes the place of `torch.autocast`: inside, products are computed in a coarser dtype.

    As there, a weight that is trained is cast once for all its uses inside, and a frozen one at each
    of them. A pass keeps these casts until it has gone back.
    """

    inside: ClassVar[list[torch.dtype | None]] = []  # the last one holds; None: as it comes

    def __init__(
        self, device: str, dtype: torch.dtype | None = None, enabled: bool = True, **_: object
    ) -> None:
        super().__init__()
        self.dtype = dtype if enabled else None
        self.casts: dict[Tensor, Tensor] = {}

    def __enter__(self) -> ImaginedAutocast:
        self.inside.append(self.dtype)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self.inside.pop()
        self.casts.clear()

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        if function in PRODUCTS and self.inside[-1] is not None:
            arguments, keywords = tree_map(self._cast, (arguments, keywords or {}))
        return function(*arguments, **(keywords or {}))

    def _cast(self, leaf: Any) -> Any:
        dtype = self.inside[-1]
        if not isinstance(leaf, Tensor) or leaf.dtype not in (torch.float32, torch.float16):
            return leaf
        if not (leaf.is_leaf and leaf.requires_grad and torch.is_autocast_cache_enabled()):
            return leaf.to(dtype)
        if leaf not in self.casts:
            self.casts[leaf] = leaf.to(dtype)
        return self.casts[leaf]
