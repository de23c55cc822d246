from pathlib import Path

import pytest
from rich.console import Console

from del_lightning.config import AccountConfig, CodecConfig, Config, MechanismConfig, StageConfig
from del_lightning.errors import ConfigError
from del_lightning.privacy import BinomialAccountant
from del_lightning.stages import account
from del_lightning.stages.checks import check
from del_lightning.stages.workspace import Workspace


def config(tmp_path: Path, mu: float | None = 10.0, dim: int | None = 18) -> Config:
    return Config(
        out=str(tmp_path / "runs"),
        stage=StageConfig("del_lightning.stages.account.run", "account"),
        codec=CodecConfig(dim=dim),
        mechanism=MechanismConfig(bits=4, mu=mu),
    )


def test_table_and_plot_need_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config(tmp_path)
    settings.model.name = "./nowhere"
    workspace = Workspace(settings)
    check(workspace)
    path = account.run(workspace)
    assert path.read_text().lstrip().startswith("<?xml")
    assert "exact epsilon" in capsys.readouterr().out


def test_table_holds_the_accountants_numbers(tmp_path: Path) -> None:
    settings = config(tmp_path)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(account.table(settings, account.accountant(settings)))
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capture.get().splitlines() if "│" in line]
    rows = {row[0]: row[1:] for row in cells}
    token = BinomialAccountant.from_mu(10.0, 18, 4)
    assert rows["tokens"] == ["1", "4", "64", "10000"]
    units = [token.compose(int(tokens)) for tokens in rows["tokens"]]
    for delta in settings.account.deltas:
        assert rows[f"epsilon, delta {delta:g}"] == [f"{unit.epsilon(delta):.5g}" for unit in units]
    assert rows["effective mu"] == [f"{unit.effective_mu:.6g}" for unit in units]
    assert rows["attack, prior 0.05"] == [f"{unit.attack_bound(0.05):.6g}" for unit in units]


@pytest.mark.parametrize(("mu", "dim", "name"), [(None, 18, "mechanism.mu"), (1.0, None, "codec.dim")])
def test_what_is_missing_is_named(tmp_path: Path, mu: float | None, dim: int | None, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"`{name}` must be set for stage=account, got None"):
        check(Workspace(config(tmp_path, mu, dim)))


@pytest.mark.parametrize("mu", [0.5, 60.0])
def test_plot_at_both_ends(mu: float) -> None:
    linear, logarithmic = account.plot(BinomialAccountant.from_mu(mu, 18, 1)).axes
    assert len(linear.lines) == 3
    assert len(logarithmic.lines) == 2


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"`account.deltas` must be in \[0, 1\), got 1.0"):
        AccountConfig(deltas=[1.0])
    with pytest.raises(ConfigError, match=r"`account.user_tokens` must be at least 1, got 0"):
        AccountConfig(user_tokens=0)
