"""What a user has released so far, and a refusal before the budget is passed.

The client writes a release down before it sends it. If it dies in between, the ledger counts a release that never
happened; the other way round cannot happen. One SQLite file serves any number of processes: a write transaction locks
out others from reading the balance until the new one is on disk.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from del_lightning.errors import BudgetError
from del_lightning.privacy.accountant import BinomialAccountant
from del_lightning.privacy.checks import require, require_positive

_TABLE = """
CREATE TABLE IF NOT EXISTS releases (
    user TEXT NOT NULL, ratio REAL NOT NULL, trials_per_token INTEGER NOT NULL, tokens INTEGER NOT NULL,
    PRIMARY KEY (user, ratio, trials_per_token)
)"""
_ADD = """
INSERT INTO releases VALUES (?, ?, ?, ?)
ON CONFLICT (user, ratio, trials_per_token) DO UPDATE SET tokens = tokens + excluded.tokens"""
_PATIENCE = 60.0
"""Seconds to wait for another process's transaction."""


@dataclass(frozen=True)
class Spent:
    """All that one user has released."""

    tokens: int
    epsilon: float
    delta: float


class BudgetLedger:
    """A per-user budget: all releases of a user together stay (epsilon, delta)-differentially private.

    Args:
        path: SQLite file; created if missing.
        epsilon: budget of a user, positive.
        delta: in [0, 1).

    Raises:
        ConfigError: an argument is out of range.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ledger = BudgetLedger(Path(folder) / "ledger.db", epsilon=10.0, delta=1e-5)
        ...     ledger.spend("me", BinomialAccountant.from_mu(0.5, 18, 4, tokens=9)).tokens
        9
    """

    def __init__(self, path: str | Path, *, epsilon: float, delta: float) -> None:
        require_positive("epsilon", epsilon)
        require(0 <= delta < 1, "delta", "in [0, 1)", delta)
        self.path, self.epsilon, self.delta = Path(path), float(epsilon), float(delta)
        with self._connection() as connection:
            connection.execute(_TABLE)

    def spend(self, user: str, release: BinomialAccountant) -> Spent:
        """Enter a release that is about to be sent; on return it is on disk and may go.

        Args:
            user: whose budget pays.
            release: what is released, with its number of tokens; a repeated release pays again.

        Returns:
            The new balance.

        Raises:
            BudgetError: the release would pass the budget. Nothing is entered, and nothing must be sent.
        """
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")  # from here to the commit no other process reads a balance to spend
            after = self._enter(connection, user, release)
            if after.epsilon > self.epsilon:
                connection.execute("ROLLBACK")
                before = self._balance(connection, user)
                raise BudgetError(
                    f"the privacy budget of epsilon {self.epsilon:g} at delta {self.delta:g} must cover the release, "
                    f"got epsilon {after.epsilon:.6g} with {release.tokens} tokens after {before.tokens}"
                )
            connection.execute("COMMIT")
        return after

    def foresee(self, user: str, release: BinomialAccountant) -> Spent:
        """The balance after a release that may still be called off, whether the budget covers it or not."""
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            after = self._enter(connection, user, release)
            connection.execute("ROLLBACK")
        return after

    def spent(self, user: str) -> Spent:
        """The balance of a user; zero for one who is unknown."""
        with self._connection() as connection:
            return self._balance(connection, user)

    def _enter(self, connection: sqlite3.Connection, user: str, release: BinomialAccountant) -> Spent:
        """Add a release inside the open transaction; returns the balance with it."""
        connection.execute(_ADD, (user, release.ratio, release.trials // release.tokens, release.tokens))
        return self._balance(connection, user)

    def _balance(self, connection: sqlite3.Connection, user: str) -> Spent:
        """Exact for one mechanism; for several, all bits count at the largest c/A, of which the rest are functions."""
        rows = connection.execute("SELECT ratio, trials_per_token, tokens FROM releases WHERE user = ?", (user,))
        releases = rows.fetchall()
        if not releases:
            return Spent(0, 0.0, self.delta)
        trials = sum(per_token * tokens for _, per_token, tokens in releases)
        # The law depends on the number of bits and their ratio only.
        whole = BinomialAccountant(dim=trials, bits=1, ratio=max(ratio for ratio, _, _ in releases))
        return Spent(sum(tokens for _, _, tokens in releases), whole.epsilon(self.delta), self.delta)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        # The rollback journal, not the write-ahead log: turning the latter on fails at once, without patience, while
        # another process opens the same new file.
        with closing(sqlite3.connect(self.path, timeout=_PATIENCE, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = EXTRA")  # a commit, with its journal's end, is on disk by then
            yield connection
