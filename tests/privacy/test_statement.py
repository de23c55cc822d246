import dataclasses

import pytest

from del_lightning.privacy import BinomialAccountant, PrivacyStatement

WEAK = PrivacyStatement.for_quantizer(dim=18, bits=4, mu=10.0, sequence_tokens=64)


def test_numbers_come_from_the_exact_accountant() -> None:
    token = BinomialAccountant.from_mu(10.0, 18, 4)
    assert WEAK.epsilon_token == token.epsilon(1e-5)
    assert WEAK.epsilon_sequence == token.compose(64).epsilon(1e-5)
    assert WEAK.mu_effective == token.effective_mu
    assert WEAK.max_epsilon == token.max_epsilon
    assert (WEAK.mu_token, WEAK.delta, WEAK.sequence_tokens, WEAK.unit) == (10.0, 1e-5, 64, "token")
    assert WEAK.attack_bound is None


def test_summary_is_one_line_that_shows_the_sequence_beside_mu() -> None:
    line = WEAK.summary()
    assert "\n" not in line
    assert "mu 10 a token" in line
    assert f"{WEAK.epsilon_sequence:.4g} a sequence of 64 tokens (delta 1e-05)" in line
    assert "vacuous" in line
    assert "almost nothing" in line


def test_strong_setting_carries_no_warning() -> None:
    strong = PrivacyStatement.for_quantizer(dim=18, bits=4, mu=0.5, sequence_tokens=4, prior=0.05)
    assert strong.caveat == ""
    assert strong.paper_bound_vacuous is False
    assert strong.attack_bound == BinomialAccountant.from_mu(0.5, 18, 4).attack_bound(0.05)
    assert f"at most {strong.attack_bound:.4g}" in strong.summary()


def test_no_guarantee_claims_none() -> None:
    clean = PrivacyStatement.none("clean", "the server reads the prompt")
    assert clean.summary() == "clean: no differential privacy guarantee; the server reads the prompt"
    columns = clean.columns()
    assert columns.mu_token is columns.epsilon_token is columns.epsilon_sequence is columns.delta is None


def test_length_only_is_perfect_but_for_the_length() -> None:
    mean = PrivacyStatement.length_only("mean", sequence_tokens=64, delta=1e-5)
    assert mean.columns().epsilon_sequence == 0
    assert "number of private tokens is visible" in mean.summary()


def test_columns_hold_the_statement() -> None:
    columns = WEAK.columns().model_dump()
    assert columns.pop("parameters") == {"mu": 10.0, "bits": 4.0, "dim": 18.0}
    assert columns == {name: getattr(WEAK, name) for name in columns}


def test_statements_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        WEAK.mu_token = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        WEAK.parameters["mu"] = 1.0  # type: ignore[index]
