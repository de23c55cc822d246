"""The embedded engine: the tokens of an offline evaluation, whoever else is served."""

import asyncio
import time
from typing import Any

import pytest
import torch

from del_lightning.serve import engine as engine_module
from del_lightning.serve.base import BusyError, Delta, Event, Failed, Finished
from del_lightning.serve.engine import TransformersEngine
from del_lightning.serve.exports import Prompt
from del_lightning.serve.sampling import Sampling
from tests.serve.stand import Stand, codes_of, collect, offline, request_of, with_engine

GREEDY = Sampling(12, temperature=0.0)


def make(stand: Stand, rows: int = 4, queue: int = 64) -> tuple[TransformersEngine, dict[str, Any]]:
    exports = stand.exports()
    return TransformersEngine(stand.llm, list(exports.values()), rows=rows, queue=queue), exports


def endless(stand: Stand, sampling: Sampling, tokens: int = 5, number: int = 0) -> tuple[Any, list[int]]:
    """Codes whose continuation does not end early, and the continuation."""
    for seed in range(100):
        codes = codes_of(stand, tokens, seed, number)
        if len(expected := offline(stand, codes, sampling, number)) == sampling.max_tokens:
            return codes, expected
    raise AssertionError("every continuation ends early")


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(25, 0.7, 0.9, seed=3), Sampling(25, 5.0, 1.0, seed=4)])
@pytest.mark.parametrize("number", [0, 1])
def test_tokens_are_those_of_an_offline_evaluation(stand: Stand, number: int, sampling: Sampling) -> None:
    engine, exports = make(stand)
    codes = codes_of(stand, 9, seed=1, number=number)
    expected = offline(stand, codes, sampling, number)

    async def work() -> Any:
        return await collect(engine.submit(request_of(stand, codes, sampling, exports, number)))

    ids, text, last = with_engine(engine, work)
    assert ids == expected
    assert text == stand.llm.tokenizer.decode(expected, skip_special_tokens=True)
    reason = "length" if len(expected) == sampling.max_tokens else "stop"
    assert last == Finished(len(expected), reason)


def test_neighbours_change_nothing(stand: Stand) -> None:
    """Thirty requests of both settings, all sizes and samplings, on four rows: each as if it were alone."""
    engine, exports = make(stand)
    jobs = [
        (
            number % 2,
            codes_of(stand, 1 + number * 7 % 23, number, number % 2),
            Sampling(3 + number * 5 % 31, t, 0.9, seed),
        )
        for number, (t, seed) in enumerate(zip([0.0, 0.7, 3.0] * 10, range(30), strict=True))
    ]

    async def one(number: int, codes: Any, sampling: Sampling, delay: float) -> list[int]:
        await asyncio.sleep(delay)
        return (await collect(engine.submit(request_of(stand, codes, sampling, exports, number))))[0]

    async def work() -> list[list[int]]:
        return await asyncio.gather(*[one(*job, 0.005 * place) for place, job in enumerate(jobs)])

    found = with_engine(engine, work)
    assert found == [offline(stand, codes, sampling, number) for number, codes, sampling in jobs]
    assert len(set(map(tuple, found))) > 15


def test_requests_share_steps(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four requests of n tokens take n - 1 steps together, not 4 (n - 1), and a fifth one joins when one leaves."""
    engine, exports = make(stand)
    sizes: list[int] = []
    step = engine._batch.step
    monkeypatch.setattr(engine._batch, "step", lambda tokens: sizes.append(len(tokens)) or step(tokens))
    codes, _ = endless(stand, GREEDY)

    async def work() -> None:
        submitted = [engine.submit(request_of(stand, codes, GREEDY, exports)) for _ in range(5)]
        await asyncio.gather(*map(collect, submitted))

    with_engine(engine, work)
    assert max(sizes) == 4
    assert len(sizes) <= 3 * (GREEDY.max_tokens - 1)
    assert sum(sizes) == 5 * (GREEDY.max_tokens - 1)


def test_soft_prompt_runs_through_the_model_once(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, exports = make(stand)
    lengths: list[int] = []
    forward = stand.llm.next_logits

    def spy(*args: Any, **kwargs: Any) -> Any:
        inputs = kwargs.get("inputs_embeds")
        lengths.append(1 if inputs is None else inputs.shape[1])
        return forward(*args, **kwargs)

    monkeypatch.setattr(stand.llm, "next_logits", spy)
    prefix = len(stand.bundle().manifest.prefix_ids)

    async def work() -> None:
        for seed in range(3):
            await collect(engine.submit(request_of(stand, codes_of(stand, 4, seed), Sampling(1, 0.0), exports)))

    with_engine(engine, work)
    assert lengths == [prefix + 4] * 3


def test_public_suffix_stands_behind_the_private_prompt(stand: Stand) -> None:
    engine, exports = make(stand)
    codes, suffix = codes_of(stand, 6, 2), [7, 8, 9]
    manifest = stand.bundle().manifest
    request = request_of(stand, codes, GREEDY, exports)
    request = type(request)(Prompt(list(manifest.prefix_ids), codes, suffix), request.export, GREEDY)
    ids, _, _ = with_engine(engine, lambda: collect(engine.submit(request)))
    assert ids == offline(stand, codes, GREEDY, suffix=suffix) != offline(stand, codes, GREEDY)


def test_full_queue_refuses(stand: Stand) -> None:
    engine, exports = make(stand, rows=1, queue=2)
    long = Sampling(100_000, 5.0, 1.0, seed=1)  # it holds the row however seldom this thread runs
    codes, _ = endless(stand, Sampling(100, 5.0, 1.0, seed=1))

    async def work() -> list[Event]:
        first = engine.submit(request_of(stand, codes, long, exports))
        submit = lambda: engine.submit(request_of(stand, codes_of(stand, 3, 0), GREEDY, exports))  # noqa: E731
        taken = [submit() for _ in range(2)]
        with pytest.raises(BusyError):
            submit()
        assert sum(engine.load) == 3
        first.cancel()
        ends = [(await collect(one))[2] for one in taken]
        await collect(submit())  # there is room again
        return ends

    assert all(isinstance(end, Finished) for end in with_engine(engine, work))
    assert engine.load == (0, 0)


def test_who_leaves_frees_the_row_and_the_queue(stand: Stand) -> None:
    engine, exports = make(stand, rows=1)
    long = Sampling(100_000, 5.0, 1.0, seed=1)
    codes, _ = endless(stand, Sampling(100, 5.0, 1.0, seed=1))

    async def work() -> list[int]:
        first = engine.submit(request_of(stand, codes, long, exports))
        assert isinstance(await first.next(), Delta)
        waiting = engine.submit(request_of(stand, codes, long, exports))
        waiting.cancel()
        assert engine.load == (1, 0)
        last = engine.submit(request_of(stand, codes, GREEDY, exports))
        first.cancel()
        first.cancel()  # twice does no harm
        return (await collect(last))[0]

    assert with_engine(engine, work) == offline(stand, codes, GREEDY)


def test_waiting_requests_do_not_starve_running_ones(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many prompt tokens are read between two steps."""
    monkeypatch.setattr(engine_module, "_PROMPTS_A_STEP", 20)
    engine, exports = make(stand, rows=8)
    order: list[str] = []
    join, step = engine._batch.join, engine._batch.step
    monkeypatch.setattr(engine._batch, "join", lambda *a: order.append("join") or join(*a))
    monkeypatch.setattr(engine._batch, "step", lambda *a: order.append("step") or step(*a))
    codes, _ = endless(stand, GREEDY, tokens=12)

    async def work() -> None:
        await asyncio.gather(
            *[collect(engine.submit(request_of(stand, codes, GREEDY, exports))) for _ in range(8)],
        )

    with_engine(engine, work)
    bursts = "".join(word[0] for word in order).split("s")
    assert max(map(len, bursts)) <= 2


def test_closing_ends_what_runs(stand: Stand) -> None:
    engine, exports = make(stand, rows=1)
    codes, _ = endless(stand, Sampling(100, 5.0, 1.0, seed=1))

    async def work() -> list[Event]:
        await engine.start()
        assert engine.healthy
        taken = [
            engine.submit(request_of(stand, codes, Sampling(100_000, 5.0, 1.0, seed=1), exports)) for _ in range(2)
        ]
        assert isinstance(await taken[0].next(), Delta)
        await engine.close()
        return [(await collect(one))[2] for one in taken]

    assert asyncio.run(work()) == [Failed("the server stops")] * 2
    assert not engine.healthy


def test_a_failed_step_ends_the_requests_in_it_and_no_others(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, exports = make(stand, rows=2)
    codes, expected = endless(stand, GREEDY)

    def fail(_batch: object, _tokens: list[int]) -> torch.Tensor:
        raise RuntimeError("out of memory; the prompt was ...")

    async def work() -> Any:
        with monkeypatch.context() as patch:
            # Of every batch: on a busy machine the second request may come after the first one's has failed.
            patch.setattr(type(engine._batch), "step", fail)
            broken = [engine.submit(request_of(stand, codes, GREEDY, exports)) for _ in range(2)]
            ends = [(await collect(one))[2] for one in broken]
        return ends, await collect(engine.submit(request_of(stand, codes, GREEDY, exports)))

    ends, (ids, _, _) = with_engine(engine, work)
    assert ends == [Failed("the engine could not compute this request")] * 2
    assert ids == expected


def test_idle_engine_sleeps(stand: Stand) -> None:
    engine, exports = make(stand)

    async def work() -> float:
        await collect(engine.submit(request_of(stand, codes_of(stand, 3, 0), Sampling(1), exports)))
        before = time.process_time()
        await asyncio.sleep(0.3)
        return time.process_time() - before

    assert with_engine(engine, work) < 0.1
