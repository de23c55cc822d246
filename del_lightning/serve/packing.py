"""Linear layers in the processor's own weight layout.

A product of a few rows with a weight matrix reads the matrix once and does little else. In the layout that oneDNN wants
it reads up to twice as fast on a CPU; torch would otherwise rearrange the weights at every call, or not at all. These
are the operators that torch's own compiler emits. There is no gradient through them.
"""

from typing import cast

import torch
from torch import Tensor, nn

from del_lightning.llm import FrozenLLM


class PackedLinear(nn.Module):
    """Computes what an ``nn.Linear`` on the CPU does, up to rounding.

    Args:
        linear: Its weights are copied.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        with torch.no_grad():
            self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.contiguous(), None)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return cast(Tensor, torch.ops.mkldnn._linear_pointwise(inputs, self.weight, self.bias, "none", [], ""))


def pack(llm: FrozenLLM) -> int:
    """Replace the linear layers of a language model for inference; nothing happens but on a CPU that gains by it.

    Returns:
        How many layers were replaced.
    """
    if llm.device.type != "cpu" or not supported(llm.dtype):
        return 0
    found = [
        (parent, name, child)
        for parent in llm.model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear  # not its subclasses, which may compute something else
    ]
    for parent, name, child in found:
        setattr(parent, name, PackedLinear(child))
    return len(found)


def supported(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies numbers of this type by itself."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32 and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
