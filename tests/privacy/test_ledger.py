import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from del_lightning.errors import BudgetError, ConfigError
from del_lightning.privacy import BinomialAccountant, BudgetLedger

ROOT = Path(__file__).parents[2]
TOKEN = BinomialAccountant.from_mu(0.5, 18, 4)
DELTA = 1e-5


def budget_for(tokens: int) -> float:
    """An epsilon that this many tokens fit into, and no more."""
    return (TOKEN.compose(tokens).epsilon(DELTA) + TOKEN.compose(tokens + 1).epsilon(DELTA)) / 2


def test_balance_is_the_exact_composition_of_all_requests(tmp_path: Path) -> None:
    ledger = BudgetLedger(tmp_path / "ledger.db", epsilon=100.0, delta=DELTA)
    assert (ledger.spent("a").tokens, ledger.spent("a").epsilon) == (0, 0.0)
    ledger.spend("a", TOKEN.compose(3))
    balance = ledger.spend("a", TOKEN.compose(4))
    ledger.spend("b", TOKEN)
    assert balance.tokens == 7
    assert balance.epsilon == TOKEN.compose(7).epsilon(DELTA)
    assert ledger.spent("a") == balance
    assert BudgetLedger(tmp_path / "ledger.db", epsilon=1.0, delta=DELTA).spent("a") == balance
    assert ledger.spent("b").tokens == 1


def test_a_release_beyond_the_budget_is_refused_whole(tmp_path: Path) -> None:
    ledger = BudgetLedger(tmp_path / "ledger.db", epsilon=budget_for(10), delta=DELTA)
    ledger.spend("a", TOKEN.compose(8))
    with pytest.raises(BudgetError, match=r"budget of epsilon .* at delta 1e-05 .* with 3 tokens after 8") as error:
        ledger.spend("a", TOKEN.compose(3))
    assert "\n" not in str(error.value)
    assert ledger.spent("a").tokens == 8
    assert ledger.spend("a", TOKEN.compose(2)).tokens == 10
    with pytest.raises(BudgetError):
        ledger.spend("a", TOKEN)


def test_a_release_can_be_foreseen_without_being_entered(tmp_path: Path) -> None:
    ledger = BudgetLedger(tmp_path / "ledger.db", epsilon=budget_for(5), delta=DELTA)
    ledger.spend("a", TOKEN.compose(4))
    foreseen = ledger.foresee("a", TOKEN.compose(3))
    assert (foreseen.tokens, foreseen.epsilon) == (7, TOKEN.compose(7).epsilon(DELTA))
    assert ledger.spent("a").tokens == 4
    assert ledger.spend("a", TOKEN) == ledger.spent("a")


def test_several_mechanisms_count_as_the_loosest(tmp_path: Path) -> None:
    ledger = BudgetLedger(tmp_path / "ledger.db", epsilon=1000.0, delta=DELTA)
    loose = BinomialAccountant.from_mu(2.0, 18, 2)
    ledger.spend("a", TOKEN.compose(5))
    balance = ledger.spend("a", loose.compose(3))
    assert balance.tokens == 8
    together = BinomialAccountant(5 * TOKEN.trials + 3 * loose.trials, 1, max(TOKEN.ratio, loose.ratio))
    assert balance.epsilon == together.epsilon(DELTA)
    assert balance.epsilon >= max(TOKEN.compose(5).epsilon(DELTA), loose.compose(3).epsilon(DELTA))


def spend_until_refused(path: Path, epsilon: float, granted: "multiprocessing.Queue[int]") -> None:
    ledger = BudgetLedger(path, epsilon=epsilon, delta=DELTA)
    count = 0
    try:
        while True:
            ledger.spend("a", TOKEN)
            count += 1
    except BudgetError:
        granted.put(count)


def test_processes_together_never_pass_the_budget(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    granted = context.Queue()
    arguments = (tmp_path / "ledger.db", budget_for(40), granted)
    workers = [context.Process(target=spend_until_refused, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    counts = [granted.get(timeout=240) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert sum(counts) == 40
    assert BudgetLedger(tmp_path / "ledger.db", epsilon=1e9, delta=DELTA).spent("a").tokens == 40


def test_many_may_open_a_new_ledger_at_once(tmp_path: Path) -> None:
    for number in range(20):
        path, together = tmp_path / f"{number}.db", threading.Barrier(12)

        def open_and_spend(path: Path, together: threading.Barrier) -> None:
            together.wait()
            BudgetLedger(path, epsilon=1e9, delta=DELTA).spend("a", TOKEN)

        with ThreadPoolExecutor(12) as pool:
            for done in [pool.submit(open_and_spend, path, together) for _ in range(12)]:
                done.result()
        assert BudgetLedger(path, epsilon=1e9, delta=DELTA).spent("a").tokens == 12


def test_a_killed_client_never_released_more_than_the_ledger_says(tmp_path: Path) -> None:
    code = """
import sys
from del_lightning.privacy import BinomialAccountant, BudgetLedger
ledger = BudgetLedger(sys.argv[1], epsilon=1e9, delta=1e-5)
while True:
    ledger.spend("a", BinomialAccountant.from_mu(0.5, 18, 4))
    print("sent", flush=True)
"""
    path = tmp_path / "ledger.db"
    for killed_after in (1, 7, 20):
        before = BudgetLedger(path, epsilon=1e9, delta=DELTA).spent("a").tokens
        client = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE)
        with client:
            assert client.stdout is not None
            sent = sum(client.stdout.readline() == b"sent\n" for _ in range(killed_after))
            os.kill(client.pid, signal.SIGKILL)
            sent += client.stdout.read().count(b"sent\n")
        entered = BudgetLedger(path, epsilon=1e9, delta=DELTA).spent("a").tokens - before
        assert sent <= entered <= sent + 1
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_bad_arguments_name_themselves(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`epsilon` must be a positive finite number, got 0.0"):
        BudgetLedger(tmp_path / "x", epsilon=0.0, delta=DELTA)
    with pytest.raises(ConfigError, match=r"`delta` must be in \[0, 1\), got 1.0"):
        BudgetLedger(tmp_path / "x", epsilon=1.0, delta=1.0)
