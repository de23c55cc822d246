"""Training of the projection on public text with the LLM's own loss (paper, Eq. 7)."""

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from del_lightning.codec import LinearCodec
from del_lightning.config import CodecConfig
from del_lightning.data import Batch
from del_lightning.llm import FrozenLLM
from del_lightning.modules.base import FrozenBackboneModule, warmup_then_linear_decay
from del_lightning.privacy import StochasticQuantizer
from del_lightning.split import predicting_positions, targets


class CodecTraining(FrozenBackboneModule):
    """Trains encoder and decoder so that the frozen LLM continues a projected prefix as it should.

    Without noise as in the paper, or through the quantizer with a straight-through gradient.
    """

    def __init__(self, llm: FrozenLLM, codec: LinearCodec, config: CodecConfig, *, bits: int, seed: int = 0) -> None:
        """``bits`` matters only if ``config.train_noise_mu`` is set."""
        super().__init__(config, seed)
        self.llm, self.codec = llm, codec
        self.betas = (config.betas[0], config.betas[1])
        self.codec.requires_grad_(True)
        mu = config.train_noise_mu
        self.quantizer: StochasticQuantizer | None = None
        if mu is not None:
            self.quantizer = StochasticQuantizer.from_mu(mu=mu, dim=codec.dim, bits=bits, bound=float(codec.bound))

    def restored(self, embeddings: Tensor, generator: torch.Generator) -> Tensor:
        """Encode, add noise if asked to, decode: (N, b) -> (N, b)."""
        code = self.codec.encode(embeddings.float())
        if self.quantizer is not None:
            code = self.quantizer(code, generator)
        return self.codec.decode(code)

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """NLL of the response given the projected prefix."""
        embeddings = self.llm.embed(batch.input_ids)
        restored = self.restored(embeddings[batch.private_mask], generator).to(embeddings.dtype)
        embeddings = embeddings.masked_scatter(batch.private_mask[..., None], restored)
        logits = self.llm.logits(embeddings, batch.attention_mask, predicting_positions(batch.target_mask))
        return nn.functional.cross_entropy(logits.float(), targets(batch))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with the paper's warm-up and linear decay."""
        optimizer = torch.optim.AdamW(
            self.trainable().values(),
            lr=self.config.learning_rate,
            betas=self.betas,
            weight_decay=self.config.weight_decay,
        )
        schedule = warmup_then_linear_decay(optimizer, self.config.warmup_steps, self.config.steps)
        return {"optimizer": optimizer, "lr_scheduler": schedule}
