from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import save_file
from torch import Tensor

from del_lightning import codec as codec_module
from del_lightning.codec import LinearCodec, default_dim, pca_codec
from del_lightning.errors import ArtifactError, ConfigError
from del_lightning.passes import Peak

VOCABULARY, HIDDEN, DIM = 60, 16, 5


def vocabulary(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated embeddings with a common mean, and very uneven frequencies."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(HIDDEN, HIDDEN, generator=generator) * torch.logspace(0, -2, HIDDEN)
    embeddings = torch.randn(VOCABULARY, HIDDEN, generator=generator) @ mixing + 0.3
    return embeddings, torch.randint(1, 1000, (VOCABULARY,), generator=generator)


def unclipped(codec: LinearCodec) -> LinearCodec:
    codec.bound.fill_(1e9)
    return codec


@torch.no_grad()
def weighted_error(codec: LinearCodec, embeddings: Tensor, frequencies: Tensor) -> float:
    residual = embeddings - codec.decode(codec.encode(embeddings))
    return float((residual.square().sum(-1) * frequencies).sum() / frequencies.sum())


def test_pca_reaches_the_least_error_that_the_svd_allows() -> None:
    embeddings, frequencies = vocabulary()
    weights = (frequencies / frequencies.sum()).double().sqrt().numpy()
    singular = scipy.linalg.svdvals(embeddings.double().numpy() * weights[:, None])
    error = weighted_error(unclipped(pca_codec(embeddings, frequencies, DIM)), embeddings, frequencies)
    assert error == pytest.approx(float(np.square(singular[DIM:]).sum()), rel=1e-4)


def test_pca_spans_the_leading_singular_vectors() -> None:
    embeddings, frequencies = vocabulary()
    weighted = embeddings.double().numpy() * frequencies.double().sqrt().numpy()[:, None]
    leading = np.linalg.svd(weighted, full_matrices=False)[2][:DIM]
    codec = pca_codec(embeddings, frequencies, DIM)
    cosines = np.abs(np.sum(codec.encoder.weight.detach().numpy() * leading, axis=1))
    np.testing.assert_allclose(cosines, 1.0, atol=1e-4)
    torch.testing.assert_close(codec.decoder.weight, codec.encoder.weight.T)


def test_pca_holds_a_part_of_a_large_vocabulary_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(4000, HIDDEN, generator=generator) * torch.arange(1, HIDDEN + 1)
    frequencies = torch.rand(4000, generator=generator)
    whole = pca_codec(embeddings, frequencies, DIM)
    monkeypatch.setattr(codec_module, "AT_A_TIME", embeddings.numel() // 10)
    with Peak(whole) as peak:
        parts = pca_codec(embeddings, frequencies, DIM)
    assert peak.most < 16 * embeddings.numel() / 2  # two copies in float64 would be all of it
    cosines = (parts.encoder.weight * whole.encoder.weight).sum(1).abs()
    torch.testing.assert_close(cosines, torch.ones(DIM))


def test_frequencies_matter_to_pca() -> None:
    embeddings, frequencies = vocabulary()
    flat = unclipped(pca_codec(embeddings, torch.ones(VOCABULARY), DIM))
    weighted = unclipped(pca_codec(embeddings, frequencies, DIM))
    assert weighted_error(weighted, embeddings, frequencies) < weighted_error(flat, embeddings, frequencies)


def test_full_width_pca_loses_nothing() -> None:
    embeddings, frequencies = vocabulary()
    codec = unclipped(pca_codec(embeddings, frequencies, HIDDEN))
    torch.testing.assert_close(codec.decode(codec.encode(embeddings)), embeddings, atol=1e-4, rtol=1e-4)


def test_code_is_clipped_in_every_coordinate_and_nowhere_else() -> None:
    embeddings, frequencies = vocabulary()
    codec = pca_codec(embeddings, frequencies, DIM)
    codec.bound.fill_(0.4)
    raw, code = codec.encoder(embeddings), codec.encode(embeddings)
    inside = raw.abs() <= 0.4
    assert inside.any()
    assert not inside.all()
    torch.testing.assert_close(code[inside], raw[inside])
    torch.testing.assert_close(code[~inside], 0.4 * raw[~inside].sign())


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
def test_bound_is_the_weighted_quantile(quantile: float) -> None:
    embeddings, frequencies = vocabulary()
    codec = pca_codec(embeddings, frequencies, DIM)
    codec.calibrate_bound(embeddings, frequencies, quantile)
    # The same as the plain quantile of a table in which every token stands as often as it is counted.
    repeated = codec.encoder(embeddings).abs().repeat_interleave(frequencies, dim=0).flatten().detach().numpy()
    expected = np.quantile(repeated, quantile, method="inverted_cdf")
    assert float(codec.bound) == pytest.approx(float(expected), rel=1e-6)
    assert codec.clipped_share(embeddings, frequencies) == pytest.approx(np.mean(repeated > expected), abs=1e-6)


def test_quantile_keeps_its_share_of_mass_unclipped() -> None:
    embeddings, frequencies = vocabulary(seed=1)
    codec = pca_codec(embeddings, frequencies, DIM)
    codec.calibrate_bound(embeddings, frequencies, 0.8)
    share = codec.clipped_share(embeddings, frequencies)
    heaviest = float(frequencies.max() / frequencies.sum()) / DIM
    assert 0.2 - heaviest <= share <= 0.2


def test_clipped_share_counts_coordinates_by_weight() -> None:
    codec = LinearCodec(2, 2, bound=1.0)
    with torch.no_grad():
        codec.encoder.weight.copy_(torch.eye(2))
    rows = torch.tensor([[0.5, 2.0], [-3.0, 4.0], [1.0, -1.0]])  # 1 of 2, 2 of 2 and, at the very bound, none
    assert codec.clipped_share(rows) == pytest.approx(0.5)
    assert codec.clipped_share(rows, torch.tensor([2, 0, 6])) == pytest.approx(0.125)


def test_save_and_load(tmp_path: Path) -> None:
    embeddings, frequencies = vocabulary()
    codec = pca_codec(embeddings, frequencies, DIM)
    codec.calibrate_bound(embeddings, frequencies, 0.9)
    codec.save(tmp_path / "codec.safetensors")
    loaded = LinearCodec.load(tmp_path / "codec.safetensors")
    assert loaded.dim == DIM
    assert torch.equal(loaded.bound, codec.bound)
    assert torch.equal(loaded.decode(loaded.encode(embeddings)), codec.decode(codec.encode(embeddings)))


def test_load_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"absent\.safetensors"):
        LinearCodec.load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        {"encoder.weight": torch.zeros(2, 4)},  # no decoder, no bound
        {"encoder.weight": torch.zeros(2, 4), "decoder.weight": torch.zeros(4, 3), "bound": torch.tensor(1.0)},
        {"encoder.weight": torch.zeros(8), "decoder.weight": torch.zeros(4, 2), "bound": torch.tensor(1.0)},
        {"encoder.weight": torch.zeros(2, 4), "decoder.weight": torch.zeros(4, 2), "bound": torch.tensor(-1.0)},
    ],
    ids=["incomplete", "shapes", "vector", "bound"],
)
def test_load_refuses_what_is_no_codec(tmp_path: Path, content: dict[str, Tensor]) -> None:
    save_file(content, tmp_path / "codec.safetensors")
    with pytest.raises(ArtifactError, match=r"codec\.safetensors") as caught:
        LinearCodec.load(tmp_path / "codec.safetensors")
    assert "\n" not in str(caught.value)


def test_load_refuses_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "codec.safetensors"
    LinearCodec(HIDDEN, DIM, bound=1.0).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ArtifactError, match=r"codec\.safetensors"):
        LinearCodec.load(path)


@pytest.mark.parametrize("dim", [0, HIDDEN + 1])
def test_width_outside_the_hidden_size_is_refused(dim: int) -> None:
    with pytest.raises(ConfigError, match=rf"`codec\.dim` must be between 1 and the hidden size {HIDDEN}, got {dim}"):
        LinearCodec(HIDDEN, dim, bound=1.0)


@pytest.mark.parametrize("bound", [0.0, -1.0, float("nan")])
def test_bound_must_be_positive(bound: float) -> None:
    with pytest.raises(ConfigError, match=r"`codec\.bound` must be a positive number"):
        LinearCodec(HIDDEN, DIM, bound=bound)


def test_default_width_is_the_papers() -> None:
    assert default_dim(4096) == 128
    assert default_dim(576) == 18
    assert default_dim(16) == 1
