from collections.abc import Callable

import pytest
import torch
from torch import nn

from del_lightning.llm import FrozenLLM
from del_lightning.serve.packing import PackedLinear, pack, supported

DTYPES = [
    pytest.param(dtype, marks=pytest.mark.skipif(not supported(dtype), reason="not this processor's type"))
    for dtype in (torch.float32, torch.bfloat16)
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 70])
@torch.inference_mode()
def test_a_packed_layer_computes_the_same(rows: int, bias: bool, dtype: torch.dtype) -> None:
    linear = nn.Linear(96, 160, bias=bias, dtype=dtype)
    inputs = torch.randn(1, rows, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.testing.assert_close(PackedLinear(linear)(inputs), linear(inputs))


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_packing_changes_no_token(tiny_llm: Callable[..., FrozenLLM], dtype: torch.dtype) -> None:
    llm = tiny_llm(hidden=32, dtype=dtype)
    prompt, mask = llm.embed(torch.arange(10, 20)[None]), torch.ones(1, 10, dtype=torch.bool)
    before = llm.generate(prompt, mask, max_new_tokens=20, min_new_tokens=20)
    assert pack(llm) == 2 * 7 + 1
    assert llm.generate(prompt, mask, max_new_tokens=20, min_new_tokens=20) == before
    assert llm.embed(torch.tensor([3])).shape == (1, 32)


def test_other_types_stay_as_they_are(tiny_llm: Callable[..., FrozenLLM]) -> None:
    assert pack(tiny_llm(dtype=torch.float64)) == 0
