"""Every method states in full what it guarantees, or says that it guarantees nothing and why."""

import pytest

from del_lightning.config import METHODS
from tests.methods.test_factory import made


@pytest.mark.parametrize("name", METHODS)
def test_statement_covers_a_token_and_a_prompt_or_claims_nothing(name: str) -> None:
    statement = made(name).statement(7, delta=1e-6)
    line = statement.summary()
    assert "\n" not in line
    assert line.startswith(f"{statement.mechanism}: ")
    if not statement.units:
        assert "no differential privacy guarantee" in line
        assert statement.caveat
        assert statement.mu_token is statement.epsilon_token is statement.epsilon_sequence is statement.delta is None
        return
    token, sequence = statement.units
    assert [(u.unit, u.tokens) for u in statement.units] == [("token", 1), ("sequence", 7)]
    assert 0 <= token.epsilon <= sequence.epsilon <= sequence.max_epsilon
    assert "a sequence of 7 tokens" in line
    if statement.mu_token is not None:  # exact guarantees bound every attack
        assert statement.delta == 1e-6
        assert token.attack_bound is not None
        assert sequence.attack_bound is not None
        assert made(name).attack_bound(statement.prior) == pytest.approx(token.attack_bound)
        assert statement.prior <= token.attack_bound <= sequence.attack_bound <= 1
        assert 0 <= token.total_variation <= sequence.total_variation <= 1
