from dataclasses import replace

import pytest
import torch

from del_lightning.codebook import Codebook, code_words
from del_lightning.config import METHODS, BaselineConfig, GaussianConfig, MechanismConfig, MetricConfig, SantextConfig
from del_lightning.errors import ConfigError
from del_lightning.methods import (
    CLASSES,
    CONTINUOUS,
    DEL,
    LABELS,
    Custext,
    DPForward,
    GaussianCode,
    GaussianEmbedding,
    Method,
    MetricDP,
    MetricDPReleased,
    Parts,
    Santext,
    Vocabulary,
    build,
    default_value,
    quantile_bound,
    settings,
)
from del_lightning.methods.factory import NEEDED
from tests.methods.common import IDS, VOCABULARY, codec_for, random_table, seeded

TABLE = random_table()
FREQUENCIES = torch.arange(VOCABULARY).flip(0) + 1.0
PARTS = Parts(
    TABLE,
    codec_for(TABLE),
    FREQUENCIES,
    codebook=Codebook(torch.arange(VOCABULARY) % 5, code_words(5, 4)),
    prior=(FREQUENCIES / FREQUENCIES.sum()).log(),
    vocabulary=Vocabulary(TABLE, FREQUENCIES),
)
BASELINE = BaselineConfig(
    gaussian=GaussianConfig(mu=3.0, bits=2),
    metric=MetricConfig(eta=4.0, l2_clip=9.0),
    santext=SantextConfig(epsilon=2.0),
)
MECHANISM = MechanismConfig(mu=6.0, bits=3)


def made(name: str, value: float | None = None) -> Method:
    return build(name, PARTS, BASELINE, MECHANISM, value)


def test_every_method_has_a_class_and_a_label() -> None:
    assert set(METHODS) == set(CLASSES) == set(LABELS)
    assert len(set(LABELS.values())) == len(LABELS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_built_under_its_name_and_works(name: str) -> None:
    method = made(name)
    assert type(method) is CLASSES[name]
    assert method.name == name
    assert method.value == default_value(name, BASELINE, MECHANISM)
    release = method.release(IDS, seeded())
    assert method.restore(release).shape == (*IDS.shape, TABLE.shape[1])
    assert method.log_likelihood(release).shape == (*IDS.shape, VOCABULARY)
    assert method.payload_bits(release) >= 0
    assert method.statement(5).columns().mechanism
    assert not any(parameter.requires_grad for parameter in method.parameters())
    assert {key.partition(".")[0] for key in method.state_dict()} <= {"codec"}
    assert method.stochastic == (not torch.equal(release.payload, method.release(IDS, seeded(1)).payload))


@pytest.mark.parametrize("name", METHODS)
def test_a_value_given_counts_before_the_configured_one(name: str) -> None:
    kind = CLASSES[name]
    if kind.parameter is None:
        with pytest.raises(ConfigError, match="`value` must be None"):
            made(name, 1.0)
        return
    assert made(name, 17.5).value == 17.5
    low, high = kind.parameter_range
    assert 0 < low < made(name).value < high


@pytest.mark.parametrize("name", METHODS)
def test_only_the_parts_named_are_needed(name: str) -> None:
    parts = ("codec", "frequencies", "codebook", "prior", "bigrams", "vocabulary")
    needed = {part: any(name in names for names, other in NEEDED if other == part) for part in parts}
    enough = replace(PARTS, **{part: None for part, used in needed.items() if not used})
    assert build(name, enough, BASELINE, MECHANISM).name == name
    for part in (part for part, used in needed.items() if used):
        with pytest.raises(ConfigError, match=rf"`parts.{part}` must be given to build '{name}'"):
            build(name, replace(enough, **{part: None}), BASELINE, MECHANISM)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "local-only"])  # whose server does nothing
def test_continuous_methods_restore_no_tokens_embedding(name: str) -> None:
    restored = made(name).restore(made(name).release(IDS, seeded()))
    distance = (restored[..., None, :] - TABLE).abs().amax(-1).amin(-1)
    assert bool((distance < 1e-6).all()) == (name not in CONTINUOUS)


def test_settings_reach_the_methods() -> None:
    quantized, rounded, embedding = made("del"), made("gaussian-code-nbit"), made("gaussian-embedding")
    assert isinstance(quantized, DEL)
    assert isinstance(rounded, GaussianCode)
    assert isinstance(embedding, GaussianEmbedding)
    assert (quantized.bits, rounded.bits, rounded.range_sigmas) == (3, 2, 3.0)
    assert embedding.bound == quantile_bound(TABLE, FREQUENCIES, 0.99)
    plus, custext, forward = made("santext-plus"), made("custext-plus"), made("dp-forward-released")
    assert isinstance(plus, Santext)
    assert isinstance(custext, Custext)
    assert isinstance(forward, DPForward)
    assert (plus.fraction, plus.p, plus.value) == (0.5, 0.2, 2.0)
    assert custext.sets.shape[1] == 20
    assert (forward.delta, forward.released) == (1e-5, True)


def test_rounding_takes_dels_bits_unless_it_has_its_own() -> None:
    assert settings("gaussian-code-nbit", BaselineConfig(), MECHANISM)["bits"] == 3
    assert settings("gaussian-embedding-nbit", BASELINE, MECHANISM)["bits"] == 2


def test_settings_tell_variants_apart() -> None:
    pairs = (("custext", "custext-plus"), ("dp-forward", "dp-forward-released"), ("santext", "santext-plus"))
    for one, other in pairs:
        assert settings(one, BASELINE, MECHANISM) != settings(other, BASELINE, MECHANISM)


@pytest.mark.parametrize("name", ["metric-dp", "metric-dp-snd"])
def test_a_clip_to_the_largest_norm_is_told_apart_and_changes_no_other_key(name: str) -> None:
    largest = BaselineConfig(metric=MetricConfig(eta=4.0, clip_to_largest=True))
    assert settings(name, BaselineConfig(), MECHANISM) == {"l2_clip": None}
    assert settings(name, largest, MECHANISM) == {"l2_clip": None, "clip_to_largest": True}
    method = build(name, PARTS, largest, MECHANISM)
    assert isinstance(method, MetricDP | MetricDPReleased)
    assert method.l2_clip == pytest.approx(float(torch.linalg.vector_norm(TABLE, dim=-1).max()))


def test_what_cannot_be_built_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`methods` must hold names among clean, .*got 'gauss'"):
        made("gauss")
    with pytest.raises(ConfigError, match="`mu` of 'gaussian-code' must be calibrated or configured, got None"):
        build("gaussian-code", PARTS, BaselineConfig(), MECHANISM)
