from pathlib import Path

import pytest
from rich.console import Console

from del_lightning.config import AccountConfig, CodecConfig, Config, MechanismConfig, StageConfig
from del_lightning.errors import ConfigError
from del_lightning.privacy import BinomialAccountant
from del_lightning.stages import account
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
    workspace.check()
    path = account.run(workspace)
    assert path.read_text().lstrip().startswith("<?xml")
    assert "exact epsilon" in capsys.readouterr().out


def test_table_holds_the_accountants_numbers(tmp_path: Path) -> None:
    settings = config(tmp_path)
    console = Console(width=200, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    console.print(account.table(settings, account.accountant(settings)))
    console.file.close()
    lines = console.export_text().splitlines()
    token = BinomialAccountant.from_mu(10.0, 18, 4)
    units = {"token": 1, "span": 4, "sequence": 64, "user": 10_000}
    for unit, tokens in units.items():
        [line] = [line for line in lines if f" {unit} " in line and f" {tokens} " in line]
        for delta in settings.account.deltas:
            assert f" {token.compose(tokens).epsilon(delta):.4g} " in line
    assert f" {token.attack_bound(settings.account.prior):.6g} " in next(line for line in lines if " token  " in line)


@pytest.mark.parametrize(("mu", "dim", "name"), [(None, 18, "mechanism.mu"), (1.0, None, "codec.dim")])
def test_what_is_missing_is_named(tmp_path: Path, mu: float | None, dim: int | None, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"`{name}` must be set for stage=account, got None"):
        Workspace(config(tmp_path, mu, dim)).check()


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
