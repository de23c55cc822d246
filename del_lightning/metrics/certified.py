"""What is certified about an attacker's success, beside what was measured.

If a token is drawn so that its likeliest value has probability kappa *given all that the attacker knows besides the
release*, no attacker names it with probability above ``Method.attack_bound(kappa)``. Which kappa is right depends on
who attacks:

* **One position at a time** (nearest neighbour, Bayes-optimal): the guess for a token is a function of that token's
  release and of public data, in which the test prompts do not occur. Over all tokens attacked, the token at a random
  place has the very distribution of their counts, so kappa is the largest share of one token among them
  (:func:`largest_share`). No assumption on language is needed, and the attacker's prior may be as good as it likes.
  Where the last places of a sequence are released in a way of their own, the guess knows which of the two kinds a place
  is of; then kappa is that of each kind, and the bound their mean over the tokens (:func:`certified_alone`).
* **With context** (language models, input inference, trained inverter): the guess uses the releases of the other
  tokens as well. They may tell as much as the other tokens themselves, so kappa_t is the largest probability of a token
  there given all others, and the bound is the mean of attack_bound(kappa_t). It needs a model of language, and holds
  for text that follows that model; the bound of the first kind says nothing about these attackers, who may pass it.
"""

import torch
from torch import Tensor

from del_lightning.errors import CertificateError, ConfigError
from del_lightning.methods import Method
from del_lightning.report.schema import Estimate

GRID = 200
"""Contextual kappas are rounded up to multiples of 1/200, so that few bounds have to be worked out."""


def largest_share(tokens: Tensor, guesses: int = 1) -> float:
    """Largest share of one token among those attacked (N,); of the ``guesses`` commonest ones for a list of guesses.

    Example:
        >>> largest_share(torch.tensor([5, 5, 7, 2]))
        0.5
    """
    _, counts = torch.unique(tokens, return_counts=True)
    return float(counts.topk(min(guesses, len(counts))).values.sum()) / tokens.numel()


def certified_recovery(method: Method, kappa: float | Tensor) -> float | None:
    """Upper bound on the expected share of tokens that an attacker names; None where nothing is guaranteed.

    Args:
        method: The front-end, which bounds the success on one token.
        kappa: Largest probability of a token, in (0, 1], given what the attacker knows besides the release: one number,
            or one a token (N,), whose bounds are averaged. See the module for which one holds for whom.

    Raises:
        ConfigError: ``kappa`` is not in (0, 1].
    """
    values = torch.as_tensor(kappa, dtype=torch.float64)
    if values.numel() == 0 or not bool(((values > 0) & (values <= 1)).all()):
        raise ConfigError(
            f"`kappa` must be a probability in (0, 1] for each token, got {values.flatten()[:3].tolist()}"
        )
    if values.numel() == 1:
        return method.attack_bound(float(values))
    steps, counts = torch.unique((values * GRID - 1e-9).ceil().clamp(1, GRID), return_counts=True)
    limits = [method.attack_bound(float(step) / GRID) for step in steps]
    known = [limit for limit in limits if limit is not None]
    if len(known) < len(limits):
        return None
    return float((torch.tensor(known, dtype=torch.float64) * counts).sum() / counts.sum())


def certified_alone(method: Method, tokens: Tensor, lengths: Tensor) -> float | None:
    """Bound on the share that attackers of one position at a time name, whatever they know besides the releases.

    Args:
        method: The front-end.
        tokens: (N,) ids under attack, of S sequences one after the other.
        lengths: (S,) tokens of each; they sum to N.
    """
    if not method.last:
        return certified_recovery(method, largest_share(tokens))
    from_end = torch.cat([torch.arange(length - 1, -1, -1) for length in lengths.tolist()])
    kappa = torch.zeros(len(tokens))
    for kind in (from_end < method.last, from_end >= method.last):
        if bool(kind.any()):
            kappa[kind] = largest_share(tokens[kind.to(tokens.device)])
    return certified_recovery(method, kappa)


def check_certified(attack: str, measured: Estimate, bound: float | None) -> None:
    """Fail loudly when an attack is surely more successful than any attack can be.

    Args:
        attack: Name of the attack and setting, for the message.
        measured: Share of tokens read, with its interval.
        bound: Certified upper bound on the expected share; None certifies nothing.

    Raises:
        CertificateError: The lower confidence limit lies above the bound: mechanism, accountant or attack has a bug.
    """
    low = measured.value if measured.low is None else measured.low
    if bound is not None and low > bound + 1e-12:
        raise CertificateError(
            f"{attack} must read at most the certified share {bound:.6g} of the tokens, got {measured.value:.6g} "
            f"(lower limit {low:.6g}, {measured.n} tokens)"
        )
