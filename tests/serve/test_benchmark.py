"""The serving benchmark asks for what it says, and would notice what it is there to notice."""

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from del_lightning.config import ServeConfig
from del_lightning.llm import FrozenLLM
from del_lightning.stages import serve
from tests.serve.stand import serving

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return importlib.import_module("serving")


@pytest.fixture
def model(tiny_llm: Callable[..., FrozenLLM], tmp_path: Path, cache: Path) -> str:
    llm = tiny_llm(hidden=32)
    llm.model.save_pretrained(tmp_path / "model")
    llm.tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def prepared(benchmark: Any, model: str, tmp_path: Path) -> tuple[Any, list[Any], Path]:
    """A small load test, its requests, and the folder of their export."""
    load = benchmark.Load(minutes=0.01, clients=3, jobs=6, new_tokens=(3, 12), model=model, virtual_tokens=4)
    folder = tmp_path / "load"
    folder.mkdir()
    names = ("model", "dtype", "virtual_tokens", "jobs", "new_tokens", "temperature")
    job = {name: getattr(load, name) for name in names}
    benchmark.prepare({**job, "expect": True, "folder": str(folder)})
    return load, [benchmark.Job(**one) for one in json.loads((folder / "jobs.json").read_text())], folder


def test_a_load_test_knows_its_streams_from_others(benchmark: Any, prepared: tuple[Any, list[Any], Path]) -> None:
    load, jobs, folder = prepared
    config = benchmark.config(folder / "runs", load.model, load.dtype, load.virtual_tokens)
    with serving(serve.build(replace(config, serve=ServeConfig(port=0, requests_per_minute=0)))) as (url, _):
        found = benchmark.ask_together(f"{url}/v1/generate", benchmark.taken_from(jobs * 3), load.clients)
    assert len(found) == 18
    assert len({tuple(job.expected) for job in jobs}) == 6
    good = benchmark.check(folder, load, found)
    assert good == {"exact": 18, "same_up_to_rounding": 0, "wrong": 0, "lost": 0, "held": True}
    (job, _), other = found[0], next(answer for job, answer in found if job is not found[0][0] and len(answer.ids) > 3)
    mixed = replace(job, query=job.query | {"max_tokens": len(other.ids)})
    assert benchmark.check(folder, load, [(mixed, replace(other, ended="length"))])["wrong"] == 1
    full = next((job, answer) for job, answer in found if answer.ended == "length")
    for change in ({"ids": full[1].ids[:-1]}, {"ended": "broken"}, {"ended": "cut"}):
        bad = benchmark.check(folder, load, [(full[0], replace(full[1], **change)), *found])
        assert bad == {"exact": 18, "same_up_to_rounding": 0, "wrong": 0, "lost": 1, "held": False}


def test_a_single_departure_is_no_mix_up(benchmark: Any, prepared: tuple[Any, list[Any], Path]) -> None:
    load, jobs, folder = prepared
    offline = benchmark.Offline(folder, load.model, load.dtype, load.virtual_tokens)
    job = max(jobs, key=lambda one: len(one.expected))
    other = max((one for one in jobs if one is not job), key=lambda one: len(one.expected))

    def departures(ids: list[int]) -> int:
        return int(offline.departures(job, benchmark.Answer(ids, 0.1, 0.2, "length")))

    assert departures(job.expected) == 0
    assert departures([*job.expected[:3], (job.expected[3] + 1) % 300]) == 1
    assert departures(other.expected) > len(other.expected) / 2


def test_sizes_are_those_of_real_frames(benchmark: Any, model: str) -> None:
    sizes = benchmark.run_sizes(model, tokens=40, mus=(0.5, 50.0))
    forms = {name: form["bytes"] for name, form in sizes["forms"].items()}
    assert sizes["dim"] == 1
    prefix = 4 * sizes["public_prefix_tokens"]
    assert prefix > 0
    assert forms["embeddings, fp32"] == prefix + 40 * 32 * 4
    for mu in ("0.5", "50"):
        packed = [forms[f"codes, {bits} bits, packed, mu {mu}"] for bits in (1, 2, 4, 8)]
        assert packed == [52 + prefix + 5 * bits for bits in (1, 2, 4, 8)]
        assert sizes["forms"][f"codes, 4 bits, packed, mu {mu}"]["mu"] == float(mu)
    coded = "codes, 8 bits, entropy-coded, mu "
    assert forms[f"{coded}0.5"] < forms[f"{coded}50"] <= forms["codes, 8 bits, packed, mu 50"]


def test_no_first_token_is_no_short_wait(benchmark: Any) -> None:
    answers = [benchmark.Answer([], first, 1.0, "stop") for first in (None, 2.0, 4.0, None)]
    assert benchmark.first_tokens(answers) == {"p50": 3.0, "p95": pytest.approx(3.9), "without": 2}
    assert benchmark.first_tokens(answers[:1]) == {"p50": None, "p95": None, "without": 1}


@pytest.mark.slow
def test_speed_from_start_to_end(benchmark: Any, model: str) -> None:
    case = benchmark.Case("float32", clients=(1, 2), prompts=2, new_tokens=4, turns=2, model=model, virtual_tokens=4)
    result = benchmark.run_case(case)
    assert set(result["clients"]) == {1, 2}
    for row in result["clients"].values():
        ratios = zip(row["tokens_per_second"]["repeats"], result["plain"]["tokens_per_second"]["repeats"], strict=True)
        assert row["ratio"]["repeats"] == pytest.approx([mine / plain for mine, plain in ratios])
        assert row["first_token_seconds"]["p50"] <= row["first_token_seconds"]["p95"]


def test_load_adds_up(benchmark: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole load test, in this process and without the killing (that is in tests/stages/test_serve.py)."""

    def prepared(folder: Path, **job: Any) -> list[Any]:
        benchmark.prepare({**job, "folder": str(folder)})
        return [benchmark.Job(**one) for one in json.loads((folder / "jobs.json").read_text())]

    @contextmanager
    def running(command: list[str], port: int) -> Iterator[None]:
        assert command[1:4] == ["-m", "del_lightning", "stage=serve"]
        (out,) = [Path(word.removeprefix("out=")) for word in command if word.startswith("out=")]
        config = benchmark.config(out, load.model, load.dtype, load.virtual_tokens)
        with serving(serve.build(replace(config, serve=ServeConfig(port=port, requests_per_minute=0)))):
            yield None

    load = benchmark.Load(minutes=0.01, clients=4, jobs=5, new_tokens=(4, 20), model=model, virtual_tokens=4)
    monkeypatch.setattr(benchmark, "prepared", prepared)
    monkeypatch.setattr(benchmark, "running", running)
    monkeypatch.setattr(benchmark, "kill", lambda *_: {})
    result = benchmark.run_load(load)
    assert result["held"]
    assert result["requests"] == result["exact"] + result["same_up_to_rounding"] > 4
    assert result["restart"]["first_answer"] in ("stop", "length")
