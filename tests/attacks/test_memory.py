"""Attacks at the size of a large vocabulary, in a process of their own whose peak memory is read."""

import subprocess
import sys
from pathlib import Path

import pytest

VOCABULARY, TOKENS, DIM, HIDDEN = 152_000, 4096, 256, 320

SCRIPT = f"""
import re
from pathlib import Path

import numpy as np
import torch

from del_lightning.attacks import BayesOptimal, NearestNeighbour
from del_lightning.bigrams import Bigrams
from del_lightning.attacks.language_model import BigramPrior
from del_lightning.codec import LinearCodec
from del_lightning.data.tokens import Ragged
from del_lightning.methods import DEL


def megabytes(key):
    return int(re.search(key + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


torch.manual_seed(0)
codec = LinearCodec({HIDDEN}, {DIM}, bound=1.0)
codec.decoder.weight.data = codec.encoder.weight.data.T.clone()
method = DEL(torch.randn({VOCABULARY}, {HIDDEN}), codec, bits=4, mu=1000.0)
truth = torch.randint({VOCABULARY}, (1, {TOKENS}))
release = method.release(truth)
prior = torch.full(({VOCABULARY},), 1 / {VOCABULARY}).log()
text = Ragged(torch.randint({VOCABULARY}, (100_000,)).int().numpy(), np.array([0, 100_000]))
# The nearest neighbour takes 1,024 tokens at a time, the bigrams eight sequences: one piece has the peak of all.
work = (
    (NearestNeighbour(), release[:1024], 1024),
    (BayesOptimal(prior), release, {TOKENS}),
    (BigramPrior(prior, Bigrams(text, prior)), release[:512], 64),
)
for attack, part, length in work:
    before = megabytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # peak so far: forgotten
    guess = attack(method, part, torch.full((part.tokens // length,), length))[attack.name]
    rate = float((guess[:, 0] == truth[0, : part.tokens]).float().mean())
    print(f"{{attack.name}}: {{rate:.3f}} {{megabytes('VmHWM') - before:.0f}}")
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_a_large_vocabulary_takes_less_than_two_gigabytes_more() -> None:
    output = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    found = dict(line.split(": ") for line in output.splitlines())
    assert len(found) == 3
    for name, numbers in found.items():
        rate, extra = map(float, numbers.split())
        assert rate > 0.5, name
        assert extra < 2000, name
