"""Stage ``account``: what a configuration guarantees, exactly, before anything is trained; needs no model.

A table over units and deltas, and a plot of the trade-off function of one token beside the Gaussian curve that the
paper's mu names and the band that its Theorem 4.2 proves.
"""

import math
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.special import log_ndtr, ndtr, ndtri

from del_lightning.config import Config
from del_lightning.errors import ConfigError
from del_lightning.privacy.accountant import BinomialAccountant
from del_lightning.privacy.statement import PrivacyStatement
from del_lightning.stages.workspace import Workspace
from del_lightning.terminal import say


def run(ws: Workspace) -> Path:
    """Print statement and table, and write the plot; returns its path."""
    token = accountant(ws.config)
    Console().print(table(ws.config, token))
    say(statement(ws.config, token, ws.config.evaluate.delta).summary())
    name = f"tradeoff-d{token.dim}-n{token.bits}-mu{ws.config.mechanism.mu:g}.svg"
    path = ws.store.root / "account" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    plot(token).savefig(path, metadata={"Date": None})
    say(f"plot: {path.resolve()}")
    return path


def accountant(config: Config) -> BinomialAccountant:
    """The accountant of one token; the width cannot be taken from a model here.

    Raises:
        ConfigError: ``codec.dim`` or ``mechanism.mu`` is not set.
    """
    if config.codec.dim is None:
        raise ConfigError("`codec.dim` must be set for stage=account, got None")
    if config.mechanism.mu is None:
        raise ConfigError("`mechanism.mu` must be set for stage=account, got None")
    return BinomialAccountant.from_mu(config.mechanism.mu, config.codec.dim, config.mechanism.bits)


def statement(config: Config, token: BinomialAccountant, delta: float) -> PrivacyStatement:
    """The guarantee at one delta for every unit."""
    return PrivacyStatement.for_accountant(
        token,
        sequence_tokens=config.account.sequence_tokens,
        span_tokens=config.account.span_tokens,
        user_tokens=config.account.user_tokens,
        delta=delta,
        prior=config.account.prior,
    )


def table(config: Config, token: BinomialAccountant) -> Table:
    """One column a unit: exact epsilon at every delta, effective mu, and what any attack can reach."""
    statements = [statement(config, token, delta) for delta in config.account.deltas]
    units = statements[0].units
    found = Table(
        title=f"exact privacy of {token.dim} coordinates at {token.bits} bits, mu {token.mu_token:.4g} a token"
    )
    found.add_column("unit")
    for unit in units:
        found.add_column(unit.unit, justify="right")
    found.add_row("tokens", *(str(unit.tokens) for unit in units))
    for one in statements:
        found.add_row(f"epsilon, delta {one.delta:g}", *(f"{unit.epsilon:.5g}" for unit in one.units))
    found.add_row("effective mu", *(_figure(unit.mu_effective) for unit in units))
    found.add_row("total variation", *(_figure(unit.total_variation) for unit in units))
    found.add_row(f"attack, prior {config.account.prior:g}", *(_figure(unit.attack_bound) for unit in units))
    return found


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def plot(token: BinomialAccountant) -> Figure:
    """Trade-off functions of one token on linear and on logarithmic axes."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    linear, logarithmic = figure.subplots(1, 2)
    _linear(linear, token)
    _logarithmic(logarithmic, token)
    for axes in (linear, logarithmic):
        axes.set_xlabel("type I error α")
        axes.set_ylabel("type II error")
    linear.legend(frameon=False, fontsize=8)
    figure.suptitle(f"d {token.dim}, n {token.bits}, mu {token.mu_token:.4g}: one token", fontsize=10)
    return figure


def _linear(axes: Axes, token: BinomialAccountant) -> None:
    alpha = np.concatenate(([0.0], np.geomspace(1e-6, 1, 400)))
    mu, gamma = token.paper_mu, token.paper_gamma
    lower = ndtr(-ndtri(np.minimum(alpha + gamma, 1)) - mu) - gamma
    upper = ndtr(-ndtri(np.maximum(alpha - gamma, 0)) - mu) + gamma
    label = "Theorem 4.2" + (" (vacuous)" if token.paper_bound_vacuous else "")
    axes.fill_between(alpha, np.clip(lower, 0, 1), np.clip(upper, 0, 1 - alpha), alpha=0.2, label=label, lw=0)
    axes.plot(alpha, token.tradeoff(alpha), label="exact")
    axes.plot(alpha, ndtr(-ndtri(alpha) - mu), "--", label="Gaussian of the same mu")
    axes.plot([0, 1], [1, 0], ":", color="gray", label="perfect privacy")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _logarithmic(axes: Axes, token: BinomialAccountant) -> None:
    """Powers of ten on both axes: where the curves of a weak guarantee can be told apart."""
    levels = np.linspace(-12, -0.01, 160)
    exact = [token.log_tradeoff(level * math.log(10)) / math.log(10) for level in levels]
    gaussian = log_ndtr(-ndtri(10.0**levels) - token.paper_mu) / math.log(10)
    axes.plot(levels, exact)
    axes.plot(levels, gaussian, "--")
    axes.xaxis.set_major_formatter("$10^{{{x:g}}}$")
    axes.yaxis.set_major_formatter("$10^{{{x:g}}}$")
