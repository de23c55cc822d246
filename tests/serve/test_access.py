import hmac
from pathlib import Path
from types import SimpleNamespace

import pytest

from del_lightning.errors import ConfigError
from del_lightning.serve import access
from del_lightning.serve.access import KeyLimits, Keys, RateLimit, read_keys


def test_keys_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of the lab\nalpha\n\n  beta  \ngamma requests_per_minute=0 max_prompt_tokens=64\n")
    assert read_keys(file) == {"alpha": KeyLimits(), "beta": KeyLimits(), "gamma": KeyLimits(64, 0)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"one two\n", r"max_prompt_tokens=NUMBER \(at least 1\) and .*, once each, behind a key, got else in line 1"),
        (b"one max_prompt_tokens=0\n", "got else in line 1"),
        (b"one max_prompt_tokens=-3\n", "got else in line 1"),
        (b"ok\none max_prompt_tokens=x\n", "got else in line 2"),
        (b"one requests_per_minute=1 requests_per_minute=2\n", "got else in line 1"),
        (b"one rate=1\n", "got else in line 1"),
        (b"one\ntwo\none requests_per_minute=9\n", "must hold each key once, got one again in line 3"),
        ("ok\nschlüssel\n".encode(), "got else in line 2"),
        (b"# nothing\n", "at least one key, got none"),
        (b"\xff\xfe", "a readable text file"),
    ],
)
def test_bad_key_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "keys").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_keys(tmp_path / "keys")
    with pytest.raises(ConfigError, match="a readable text file"):
        read_keys(tmp_path / "none")


def test_only_a_valid_key_opens() -> None:
    keys = Keys(dict.fromkeys(["alpha", "beta"], KeyLimits()))
    names = [keys.name(f"Bearer {key}") for key in ("alpha", "beta")]
    assert len(set(names)) == 2
    assert None not in names
    assert keys.name("bearer alpha") == names[0]
    for wrong in (None, "", "alpha", "Bearer", "Bearer ", "Bearer gamma", "Basic alpha", "Bearer alpha beta"):
        assert keys.name(wrong) is None
    assert "alpha" not in str(names)


def test_without_keys_everyone_may_ask() -> None:
    assert Keys({}).name(None) == "anyone"
    assert not Keys({}).needed


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        seen.append((len(a), len(b)))
        return hmac.compare_digest(a, b)

    keys = Keys(dict.fromkeys(["a", "bb", "ccc"], KeyLimits()))
    monkeypatch.setattr(access, "hmac", SimpleNamespace(compare_digest=compare))
    keys.name("Bearer a")
    keys.name("Bearer " + "x" * 1000)
    assert seen == [(32, 32)] * 6


def test_rate_is_that_of_each_key() -> None:
    now = [0.0]
    limit = RateLimit(clock=lambda: now[0])
    assert [limit.wait("a", 6) for _ in range(7)] == [0] * 6 + [10]
    assert limit.wait("b", 6) == 0
    now[0] += 5
    assert limit.wait("a", 6) == 5
    now[0] += 5
    assert [limit.wait("a", 6), limit.wait("a", 6)] == [0, 10]
    now[0] += 1e6
    assert [limit.wait("a", 6) for _ in range(7)] == [0] * 6 + [10]  # a long silence saves up one minute only


def test_zero_sets_no_limit() -> None:
    assert {RateLimit().wait("a", 0) for _ in range(1000)} == {0}
