"""Bits that a private token costs on the wire, before entropy coding and framing."""

import torch
from torch import Tensor
from torchmetrics import Metric


class PayloadBits(Metric):
    """Mean payload in bits a token.

    Example:
        >>> metric = PayloadBits()
        >>> metric.update(bits=720, tokens=10)
        >>> metric.compute().item()
        72.0
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = False
    bits: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("bits", default=torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("tokens", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, bits: int, tokens: int) -> None:
        """Add a payload of ``bits`` bits that carries ``tokens`` tokens."""
        self.bits = self.bits + bits
        self.tokens = self.tokens + tokens

    def compute(self) -> Tensor:
        """Bits a token; NaN before the first update."""
        return self.bits / self.tokens
