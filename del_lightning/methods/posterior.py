"""Servers that decode to posterior means: what an attacker who knows the mechanism would compute, used for the user.

Decoding is post-processing. The mechanism, its guarantee, its bits and what an attacker can read are those of the
front-end that it stands behind.
"""

import torch
from torch import Tensor

from del_lightning.bigrams import Bigrams
from del_lightning.codec import LinearCodec
from del_lightning.lattices import batches, mean_values
from del_lightning.methods.base import Method, Release
from del_lightning.methods.quantized import DEL

SEQUENCES = 8
"""Sequences decoded together; bounds the memory."""


def posterior_means(method: Method, release: Release, lengths: Tensor, prior: Tensor, bigrams: Bigrams) -> Tensor:
    """Mean embedding at every position given the releases of its whole sequence, exact under the bigrams.

    Args:
        method: The front-end that made the release.
        release: (1, N, ...) of the sequences one after the other.
        lengths: (S,) tokens of each, which sum to N.
        prior: (V,) ln Pr(token) in public text.
        bigrams: Of public text.

    Returns:
        (1, N, b) float32.
    """
    table = method.embedding_table
    parts = [
        mean_values(method, some, part, prior, bigrams, table)
        for some, part in batches(method, release, lengths, prior, SEQUENCES)
    ]
    return torch.cat(parts)[None]


class PosteriorDecoder(Method):
    """A front-end whose server reads the neighbours too.

    Attributes:
        prior: (V,) ln Pr(token) in public text.
        bigrams: Of public text; None decodes every position by itself.
    """

    prior: Tensor
    bigrams: Bigrams | None

    def restore_sequences(self, release: Release, lengths: Tensor) -> Tensor:
        """Mean embedding given the codes of the whole sequence, where there are bigrams; see :class:`Method`."""
        if self.bigrams is None:
            return self.restore(release)
        return posterior_means(self, release, lengths, self.prior, self.bigrams)


class PosteriorDEL(PosteriorDecoder, DEL):
    """DEL's own codes, decoded to the posterior mean of the embedding instead of linearly."""

    name = "del-posterior"

    def __init__(
        self,
        embedding_table: Tensor,
        codec: LinearCodec,
        prior: Tensor,
        *,
        bits: int,
        mu: float,
        bigrams: Bigrams | None = None,
    ) -> None:
        """Calibrate the quantizer as DEL does.

        Args:
            embedding_table: Clean embeddings (V, b).
            codec: Trained projection; its decoder is not used.
            prior: (V,) ln Pr(token) in public text.
            bits: n in 1..8.
            mu: The paper's GDP parameter, > 0.
            bigrams: Let the server decode with the neighbours too; None decodes every position by itself.

        Raises:
            ConfigError: ``bits`` or ``mu`` out of range.
        """
        super().__init__(embedding_table, codec, bits=bits, mu=mu)
        self.bigrams = bigrams
        self.register_buffer("prior", prior, persistent=False)

    def restore(self, release: Release) -> Tensor:
        """Mean embedding given each position's own codes, (B, L, b)."""
        return (self.log_likelihood(release) + self.prior).softmax(-1) @ self.embedding_table

    def score_values(self, release: Release) -> tuple[Tensor, Tensor] | None:
        """None: the restored embedding is no linear map of the codes."""
        return None
