"""What does private serving cost, and does it hold under load?

Speed. Plain ``generate`` of transformers continues clean prompts, one at a time and without a soft prompt. The server
continues the same prompts from their codes over HTTP, behind a soft prompt, for one client and for eight at once. All
answers have the same length (the end token counts as any other), so tokens/s are comparable.

Load. Sixteen clients at once against ``stage=serve`` as a user starts it, for ten minutes. What each stream must be is
known in advance from an offline evaluation of the same codes and seed. Sums inside a batch run in another order than
alone, so a near tie may fall the other way; from there on a stream is another text. It is then checked token by token:
would the offline model, forced along this stream, have drawn the same tokens with the same seed? Streams of two
requests that were mixed up would differ nearly everywhere. At the end the server is killed in the middle of sixteen
streams, and started again.

Size. Bytes a private token, with the public prefix counted in every form: codes of real embeddings at two mu (packed
they take the same, entropy coding gains more at a smaller mu), embeddings, text.

    python benchmarks/serving.py                  about 25 minutes on two cores
    python benchmarks/serving.py --minutes 0.5    a short load test

Writes ``results/serving.json``.
"""

import argparse
import json
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import httpx
from _common import RESULTS, Contender, Turns, show, spread, worth_running, write_result

if TYPE_CHECKING:
    from rich.table import Table

    from del_lightning.config import Config

LEAST_ALONE, LEAST_TOGETHER = 0.9, 3.0
"""Speed over plain generate that one client must have at least, and eight together."""

FORCED_SHARE = 0.05
"""A stream may part from the offline model, forced along it, at this share of its tokens: rounding does so at one."""

START_SECONDS = 300.0


@dataclass(frozen=True)
class Case:
    """One speed setting.

    Attributes:
        dtype: float32 or bfloat16.
        temperature: 0 is greedy.
        clients: Numbers of clients at once; the demand is checked at 1 and at the largest.
        prompts: Prompts of a turn and client.
    """

    dtype: str
    temperature: float = 0.0
    clients: tuple[int, ...] = (1, 8)
    prompts: int = 3
    new_tokens: int = 48
    turns: int = 5
    model: str = "smollm2-135m-instruct"
    virtual_tokens: int = 20


@dataclass(frozen=True)
class Load:
    """The load test.

    Attributes:
        jobs: Different requests, asked over and over in a random order.
    """

    minutes: float = 10.0
    clients: int = 16
    jobs: int = 48
    new_tokens: tuple[int, int] = (8, 64)
    dtype: str = "float32"
    temperature: float = 0.7
    model: str = "smollm2-135m-instruct"
    virtual_tokens: int = 20


CASES = (Case("bfloat16"), Case("bfloat16", temperature=0.7), Case("float32"))


# --- what is asked -------------------------------------------------------------------------------------------------


def config(out: Path, model: str, dtype: str, virtual_tokens: int) -> "Config":
    """A run that exports in a minute: speed does not depend on how well codec and soft prompt were trained."""
    from del_lightning.config import (
        CodecConfig,
        Config,
        DataConfig,
        LoggerConfig,
        MechanismConfig,
        ModelConfig,
        PromptConfig,
        ServeConfig,
        StageConfig,
        TrainerConfig,
    )

    return Config(
        out=str(out),
        methods=["del"],
        stage=StageConfig("del_lightning.stages.export.run", "export"),
        model=ModelConfig(name=model, dtype=dtype),
        data=DataConfig(min_words=48, prompt_words=24, train_tokens=56, split_ratio=[0.4, 0.7], validation_blocks=2),
        codec=CodecConfig(corpus="lee", steps=0, sequence_tokens=56),
        mechanism=MechanismConfig(bits=4, mu=100.0),
        prompt=PromptConfig(virtual_tokens=virtual_tokens, steps=1, batch_size=1, validate_every=1),
        trainer=TrainerConfig(progress_bar=False, attack_every=0),
        logger=LoggerConfig(kind="none"),
        serve=ServeConfig(port=0, requests_per_minute=0, timeout=600.0),
    )


@dataclass
class Job:
    """One request, and what must come of it.

    Attributes:
        frame: Its bytes, in hexadecimal digits.
        private: Ids of the private tokens.
        expected: Tokens of the offline evaluation; empty where nothing is compared.
    """

    frame: str
    private: list[int]
    query: dict[str, float]
    expected: list[int] = field(default_factory=list)


def prepare(job: Mapping[str, Any]) -> None:
    """Worker: export, draw codes for the prompts of the corpus, and evaluate them offline if asked to."""
    from del_lightning.stages import export
    from del_lightning.stages.workspace import Workspace

    folder = Path(job["folder"])
    ws = Workspace(config(folder / "runs", job["model"], job["dtype"], job["virtual_tokens"]))
    export.run(ws)
    prompts = [list(prompt.private_ids) for prompt in ws.data.prompts()]
    offline = Offline(folder, job["model"], job["dtype"], job["virtual_tokens"])
    low, high = job["new_tokens"]
    jobs = []
    for number in range(job["jobs"]):
        query = {"max_tokens": low + number * (high - low) // max(1, job["jobs"] - 1)}
        query |= {"temperature": job["temperature"], "seed": number}
        jobs.append(offline.job(prompts[number % len(prompts)], query))
        if job["expect"]:
            jobs[-1].expected = offline.tokens(jobs[-1])
    (folder / "jobs.json").write_text(json.dumps([asdict(one) for one in jobs]))


class Offline:
    """The evaluation's model on the export of a folder."""

    def __init__(self, folder: Path, model: str, dtype: str, virtual_tokens: int) -> None:
        from del_lightning.loading import load_llm
        from del_lightning.serve.bundle import Bundle
        from del_lightning.split import SplitModel

        settings = config(folder / "runs", model, dtype, virtual_tokens)
        (found,) = (path.parent for path in (folder / "runs").glob("export/*/result.json"))
        self.bundle = Bundle(found / "client")
        self.split = SplitModel.from_artifacts(found / "server", load_llm(settings.model))
        self.split.method.quantizer.amplitude = self.bundle.manifest.amplitude  # that of the client's thresholds

    def job(self, private: list[int], query: dict[str, float]) -> Job:
        """A request with fresh codes."""
        import numpy as np

        from del_lightning.wire import Frame, encode_frame

        manifest = self.bundle.manifest
        codes = self.bundle.release(np.array(private))
        frame = Frame(
            manifest.model, manifest.setting, manifest.bits, manifest.a_plus, codes, prefix=manifest.prefix_ids
        )
        return Job(encode_frame(frame).hex(), private, query)

    def batch(self, job: Job, continuation: Sequence[int] = ()) -> tuple[Any, Any]:
        """The request as evaluation takes it, alone: batch and release."""
        import torch

        from del_lightning.data.generation import Example, collate
        from del_lightning.methods import Release
        from del_lightning.wire import decode_frame

        codes = decode_frame(bytes.fromhex(job.frame)).codes
        example = Example(self.bundle.manifest.prefix_ids, [0] * len(codes), continuation, 0)
        return collate([example], pad_id=0), Release(torch.from_numpy(codes)[None])

    def tokens(self, job: Job) -> list[int]:
        """What ``SplitModel.generate`` makes of the request."""
        return self.split.generate(
            *self.batch(job),
            max_new_tokens=int(job.query["max_tokens"]),
            temperature=job.query["temperature"] or 1.0,
            do_sample=job.query["temperature"] > 0,
            seed=int(job.query["seed"]),
        )[0]

    def departures(self, job: Job, answer: "Answer") -> int:
        """At how many tokens the same law and draws, forced along the answer, would have chosen another."""
        import torch

        from del_lightning.serve.sampling import Sampler, Sampling

        said = [*answer.ids, *(self.split.llm.end_ids[:1] if answer.ended == "stop" else [])]
        with torch.inference_mode():
            logits = self.split.logits(*self.batch(job, said))
        sampling = Sampling(len(said), job.query["temperature"], 0.9, int(job.query["seed"]))
        sampler = Sampler(sampling, logits.device)
        ends = set(self.split.llm.end_ids)
        pairs = [(sampler.choose(row), token) for row, token in zip(logits, said, strict=True)]
        return sum(chosen != token and not (chosen in ends and token in ends) for chosen, token in pairs)


def work_off(job: Mapping[str, Any]) -> None:
    """Worker: plain ``generate`` on the clean prompts, one at a time."""
    import torch

    from del_lightning.config import ModelConfig
    from del_lightning.loading import load_llm

    case = Case(**job["case"])
    clients = max(case.clients)
    turns = Turns(warmup=1, steps=case.prompts, turns=case.turns)
    llm = load_llm(ModelConfig(name=case.model, dtype=case.dtype)).to("cuda" if torch.cuda.is_available() else "cpu")
    jobs = [Job(**one) for one in json.loads(Path(job["jobs"]).read_text())]
    prompts = [llm.tokenizer(job["prefix"])["input_ids"] + one.private for one in jobs]
    for step in range(1 + case.prompts * case.turns):
        ids = torch.tensor(prompts[step % (clients * case.prompts)], device=llm.device)[None]
        made = llm.generate(
            llm.embed(ids),
            torch.ones_like(ids),
            max_new_tokens=case.new_tokens,
            min_new_tokens=case.new_tokens,
            do_sample=case.temperature > 0,
            temperature=case.temperature or 1.0,
            top_p=0.9,
            seed=step,
        )
        assert len(made[0]) == case.new_tokens
        turns.step_done()


def serve(job: Mapping[str, Any]) -> None:
    """Worker: the server, to which the end token is like any other."""
    from dataclasses import replace

    from del_lightning.stages import serve as stage

    case = Case(**job["case"])
    settings = config(Path(job["folder"]) / "runs", case.model, case.dtype, case.virtual_tokens)
    settings = replace(settings, serve=replace(settings.serve, port=job["port"]))
    service = stage.build(settings, stage.reserve_cores())
    for export in service.exports.values():
        export.end_ids = frozenset()
    stage.Server(service).run()


# --- servers and clients -------------------------------------------------------------------------------------------


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@contextmanager
def running(command: Sequence[str], port: int) -> "Iterator[subprocess.Popen[str]]":
    """A server process, ready for requests; ended on the way out."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, text=True)
        try:
            wait_until_healthy(process, port, log.name)
            yield process
        finally:
            process.kill()
            process.wait()


def wait_until_healthy(process: "subprocess.Popen[str]", port: int, log: object) -> None:
    """Return when the server answers."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"{' '.join(map(str, process.args))} ended with code {process.returncode}, log {log}")
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"no server on port {port} within {START_SECONDS:g} seconds")


@dataclass
class Answer:
    """What a client got.

    Attributes:
        first: Seconds to the first token; None if there was none.
        seconds: To the end, whatever it was.
        ended: stop or length, if the answer was whole; cut, if tokens are missing; error, refused or broken.
    """

    ids: list[int]
    first: float | None
    seconds: float
    ended: str

    @property
    def whole(self) -> bool:
        """Whether nothing was lost."""
        return self.ended in ("stop", "length")


def ask(http: httpx.Client, url: str, job: Job) -> Answer:
    """Send a request and read its stream."""
    start = time.perf_counter()
    ids: list[int] = []
    first, ended, event = None, "broken", ""
    try:
        with http.stream("POST", url, content=bytes.fromhex(job.frame), params=job.query) as response:
            if response.status_code != httpx.codes.OK:
                ended = "refused"
            for line in response.iter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: ") and event == "token":
                    first = first or time.perf_counter() - start
                    ids += json.loads(line.removeprefix("data: "))["ids"]
                elif line.startswith("data: ") and event == "done":
                    last = json.loads(line.removeprefix("data: "))
                    ended = str(last["finish"]) if last["tokens"] == len(ids) else "cut"
                elif line.startswith("data: "):
                    ended = event
    except httpx.HTTPError:
        ended = "broken"
    return Answer(ids, first, time.perf_counter() - start, ended)


def ask_together(url: str, jobs: Callable[[], Job | None], clients: int) -> list[tuple[Job, Answer]]:
    """Clients, each asking for one job after the other until there is none."""
    found: list[tuple[Job, Answer]] = []

    def client() -> None:
        with httpx.Client(timeout=httpx.Timeout(600.0)) as http:
            while (job := jobs()) is not None:
                found.append((job, ask(http, url, job)))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def taken_from(jobs: Sequence[Job]) -> Callable[[], Job | None]:
    """Hands out each job once."""
    left: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        left.put(job)

    def take() -> Job | None:
        try:
            return left.get_nowait()
        except queue.Empty:
            return None

    return take


def worker(kind: str, job: Mapping[str, Any]) -> list[str]:
    """Command line of a worker of this file."""
    return [sys.executable, __file__, "--worker", json.dumps({**job, "kind": kind})]


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """50th and 95th percentile; None of nothing."""
    if not values:
        return {"p50": None, "p95": None}
    if len(values) < 2:
        return {"p50": values[0], "p95": values[0]}
    cuts = quantiles(values, n=20, method="inclusive")
    return {"p50": cuts[9], "p95": cuts[18]}


def first_tokens(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Seconds to the first token of the answers that have one, and how many have none."""
    waited = [answer.first for answer in answers if answer.first is not None]
    return {**percentiles(waited), "without": len(answers) - len(waited)}


def prepared(folder: Path, **job: Any) -> list[Job]:
    """Export and requests, made by a worker of its own."""
    subprocess.run(worker("prepare", {**job, "folder": str(folder)}), check=True, stdout=subprocess.DEVNULL)
    return [Job(**one) for one in json.loads((folder / "jobs.json").read_text())]


# --- speed ---------------------------------------------------------------------------------------------------------


def run_case(case: Case) -> dict[str, Any]:
    """One speed setting: everyone works a little, in an order that turns round each time."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = prepared(
            Path(folder),
            model=case.model,
            dtype=case.dtype,
            virtual_tokens=case.virtual_tokens,
            jobs=max(case.clients) * case.prompts,
            new_tokens=(case.new_tokens, case.new_tokens),
            temperature=case.temperature,
            expect=False,
        )
        port = free_port()
        plain_job = {"case": asdict(case), "jobs": f"{folder}/jobs.json", "prefix": prefix_of(Path(folder))}
        command = worker("serve", {"case": asdict(case), "folder": folder, "port": port})
        with running(command, port), Contender(__file__, {**plain_job, "kind": "plain"}) as plain:
            return compare(case, jobs, plain, f"http://127.0.0.1:{port}/v1/generate")


def prefix_of(folder: Path) -> str:
    """Public instruction of the export in a folder."""
    (path,) = (folder / "runs").glob("export/*/client/manifest.json")
    return str(json.loads(path.read_text())["prefix"])


def compare(case: Case, jobs: Sequence[Job], plain: Contender, url: str) -> dict[str, Any]:
    """Tokens/s of all, turn by turn."""
    ask_together(url, taken_from(jobs[: max(case.clients)]), max(case.clients))  # warm-up
    speeds: dict[int, list[float]] = {0: [], **{clients: [] for clients in case.clients}}
    answers: dict[int, list[Answer]] = {clients: [] for clients in case.clients}
    for turn in range(case.turns):
        for clients in list(speeds)[:: 1 if turn % 2 == 0 else -1]:
            if clients == 0:
                speeds[0].append(case.prompts * case.new_tokens / plain.turn())
                continue
            start = time.perf_counter()
            found = ask_together(url, taken_from(jobs[: clients * case.prompts]), clients)
            made = sum(len(answer.ids) for _, answer in found)
            assert made == clients * case.prompts * case.new_tokens, f"{made} tokens"
            speeds[clients].append(made / (time.perf_counter() - start))
            answers[clients] += [answer for _, answer in found]
    rows = {clients: row(case, speeds[clients], speeds[0], answers[clients]) for clients in case.clients}
    most = max(case.clients)
    return {
        "case": asdict(case),
        "plain": {"tokens_per_second": spread(speeds[0])},
        "clients": rows,
        "not_slower": rows[1]["ratio"]["median"] >= LEAST_ALONE,
        "fast_enough": rows[most]["ratio"]["median"] >= LEAST_TOGETHER,
    }


def row(case: Case, speeds: list[float], plain: list[float], answers: Sequence[Answer]) -> dict[str, Any]:
    """A number of clients: speed, speed over plain generate, waiting times."""
    return {
        "tokens_per_second": spread(speeds),
        "ratio": spread(mine / other for mine, other in zip(speeds, plain, strict=True)),
        "first_token_seconds": first_tokens(answers),
        "seconds_a_token": percentiles([answer.seconds / case.new_tokens for answer in answers]),
    }


# --- load ----------------------------------------------------------------------------------------------------------


def run_load(load: Load) -> dict[str, Any]:
    """The load test, and the end of the server."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = prepared(
            Path(folder),
            model=load.model,
            dtype=load.dtype,
            virtual_tokens=load.virtual_tokens,
            jobs=load.jobs,
            new_tokens=load.new_tokens,
            temperature=load.temperature,
            expect=True,
        )
        port = free_port()
        command = [sys.executable, "-m", "del_lightning", "stage=serve", f"out={folder}/runs", f"serve.port={port}"]
        command += [f"model.name={load.model}", f"model.dtype={load.dtype}", "serve.requests_per_minute=0"]
        command += ["serve.timeout=600"]
        url = f"http://127.0.0.1:{port}/v1/generate"
        with running(command, port) as process:
            start = time.perf_counter()
            answers = ask_together(url, at_random(jobs, load.minutes * 60), load.clients)
            seconds = time.perf_counter() - start
            killed = kill(process, url, jobs, load.clients)
        restarted = time.perf_counter()
        with running(command, port), httpx.Client(timeout=60) as http:
            healthy = time.perf_counter() - restarted
            after = ask(http, url, jobs[0])
        checked = check(Path(folder), load, answers)
    return {
        "load": asdict(load),
        "seconds": seconds,
        "requests": len(answers),
        "tokens_per_second": sum(len(answer.ids) for _, answer in answers) / seconds,
        "first_token_seconds": first_tokens([answer for _, answer in answers]),
        "request_seconds": percentiles([answer.seconds for _, answer in answers]),
        "different_streams": len({tuple(job.expected) for job in jobs}),
        **checked,
        "killed": killed,
        "restart": {"healthy_after_seconds": healthy, "first_answer": after.ended, "seconds": after.seconds},
    }


def at_random(jobs: Sequence[Job], seconds: float) -> Callable[[], Job | None]:
    """Jobs in a random order until time is up."""
    import random

    chooser, lock = random.Random(0), threading.Lock()
    end = time.monotonic() + seconds

    def take() -> Job | None:
        with lock:
            return chooser.choice(jobs) if time.monotonic() < end else None

    return take


def kill(process: "subprocess.Popen[str]", url: str, jobs: Sequence[Job], clients: int) -> dict[str, Any]:
    """kill -9 while every client asks for one answer after the other; how the last ones ended, and how soon."""
    killed: list[float] = []

    def strike() -> None:
        killed.append(time.perf_counter())
        process.send_signal(signal.SIGKILL)

    endless = at_random(jobs, START_SECONDS)
    timer = threading.Timer(2.0, strike)
    timer.start()
    answers = ask_together(url, lambda: None if killed else endless(), clients)
    seconds = time.perf_counter() - killed[0]
    ends = [answer.ended for _, answer in answers if not answer.whole]
    return {"clients": clients, "ends": {end: ends.count(end) for end in set(ends)}, "last_after_seconds": seconds}


def check(folder: Path, load: Load, answers: Sequence[tuple[Job, Answer]]) -> dict[str, Any]:
    """How many streams are exactly what they must be, the same up to rounding, wrong, and lost."""
    counts = {"exact": 0, "same_up_to_rounding": 0, "wrong": 0, "lost": 0}
    offline: Offline | None = None
    seen: dict[tuple[str, tuple[int, ...]], bool] = {}
    for job, answer in answers:
        if not answer.whole or (answer.ended == "length") != (len(answer.ids) == job.query["max_tokens"]):
            counts["lost"] += 1
        elif answer.ids == job.expected:
            counts["exact"] += 1
        else:
            offline = offline or Offline(folder, load.model, load.dtype, load.virtual_tokens)
            known = (job.frame, tuple(answer.ids))
            if known not in seen:
                seen[known] = offline.departures(job, answer) <= max(1, FORCED_SHARE * len(answer.ids))
            counts["same_up_to_rounding" if seen[known] else "wrong"] += 1
    return {**counts, "held": counts["wrong"] == counts["lost"] == 0 and bool(answers)}


# --- size ----------------------------------------------------------------------------------------------------------


def run_sizes(
    model: str = "smollm2-135m-instruct", tokens: int = 64, mus: Sequence[float] = (2.0, 20.0)
) -> dict[str, Any]:
    """Bytes of a prompt of so many tokens of the corpus, in every form.

    The codes are those of the model's own embeddings behind the PCA codec. Every form holds the public prefix as well:
    as text in front of text, else as token ids (of 2 bytes beside ids, of 4 bytes in a frame and beside embeddings).
    """
    from del_lightning.data import load_corpus
    from del_lightning.stages import codec as codec_stage
    from del_lightning.stages.workspace import Workspace
    from del_lightning.wire import HEADER_BYTES

    with tempfile.TemporaryDirectory() as folder:
        ws = Workspace(config(Path(folder), model, "float32", virtual_tokens=1))
        codec, prefix = codec_stage.load(ws), tuple(ws.data.prefix_ids)
        text = " ".join(load_corpus("lee").documents("test")[:5])
        ids = ws.llm.tokenizer(text, add_special_tokens=False)["input_ids"][:tokens]
        values = codec.encode(ws.embedding_table[ids]).detach().cpu().double().numpy()
        words = ws.config.data.prefix + ws.llm.tokenizer.decode(ids)
    width, dim, bound = ws.llm.hidden_size, codec.dim, float(codec.bound)
    forms: dict[str, tuple[float | None, int]] = {
        "text (UTF-8)": (None, len(words.encode())),
        "token ids (16 bits)": (None, 2 * (len(prefix) + tokens)),
        "embeddings, fp32": (None, 4 * len(prefix) + 4 * width * tokens),
        "embeddings, fp16": (None, 4 * len(prefix) + 2 * width * tokens),
    }
    for mu in mus:
        for bits in (1, 2, 4, 8):
            packed, coded = frame_sizes(values, prefix, bits, bound, mu)
            forms[f"codes, {bits} bits, packed, mu {mu:g}"] = (mu, packed)
            forms[f"codes, {bits} bits, entropy-coded, mu {mu:g}"] = (mu, coded)
    fp32 = forms["embeddings, fp32"][1]
    table = {
        name: {"mu": mu, "bytes": size, "bytes_a_token": size / tokens, "of_fp32": size / fp32}
        for name, (mu, size) in forms.items()
    }
    facts = {"tokens": tokens, "public_prefix_tokens": len(prefix), "dim": dim, "hidden_size": width}
    return {**facts, "header_bytes": HEADER_BYTES, "forms": table}


def frame_sizes(values: Any, prefix: tuple[int, ...], bits: int, bound: float, mu: float) -> tuple[int, int]:
    """Bytes of a frame with codes of these values (T, d): packed, and entropy-coded."""
    from del_lightning.privacy import SecureSampler
    from del_lightning.wire import Frame, encode_frame

    sampler = SecureSampler(bits, bound, mu, values.shape[1])
    frame = Frame("0" * 16, "0" * 16, bits, sampler.threshold, sampler.encode(values), prefix=prefix)
    return len(encode_frame(frame)), len(encode_frame(frame, entropy_coding=True))


# --- all together --------------------------------------------------------------------------------------------------


def main(cases: Sequence[Case] = CASES, load: Load = Load(), path: Path = RESULTS / "serving.json") -> None:
    """Run everything, print tables, write one file."""
    from rich import print as rprint

    sizes = run_sizes(load.model)
    rprint(_size_table(sizes))
    results = []
    for case in worth_running(cases):
        results.append(run_case(case))
        rprint(_speed_table(results[-1]))
    loaded = run_load(load)
    rprint(loaded)
    demand = (
        f"one client at least {LEAST_ALONE:g} times the tokens/s of plain generate, eight together at least "
        f"{LEAST_TOGETHER:g} times; no stream lost or mixed up under load"
    )
    packages = ("fastapi", "uvicorn", "httpx", "constriction")
    write_result(path, {"demand": demand, "results": results, "load": loaded, "sizes": sizes}, packages)


def _speed_table(result: dict[str, Any]) -> "Table":
    from rich.table import Table

    case = result["case"]
    title = f"Serving: {case['dtype']}, temperature {case['temperature']:g}"
    table = Table(title=title, caption="median (range of turns)")
    for column in ("clients", "tokens/s", "speed of plain generate", "first token, s (p50, p95)"):
        table.add_column(column, justify="right")
    table.add_row("plain", show(result["plain"]["tokens_per_second"], ".1f"), "1", "")
    for clients, one in result["clients"].items():
        first = one["first_token_seconds"]
        cells = (show(one["tokens_per_second"], ".1f"), show(one["ratio"]), f"{first['p50']:.2f}, {first['p95']:.2f}")
        table.add_row(str(clients), *cells)
    return table


def _size_table(sizes: dict[str, Any]) -> "Table":
    from rich.table import Table

    title = (
        f"A prompt of {sizes['tokens']} private tokens; header and {sizes['public_prefix_tokens']} public ones included"
    )
    table = Table(title=title)
    for column in ("form", "bytes", "a token", "of fp32 embeddings"):
        table.add_column(column, justify="left" if column == "form" else "right")
    for name, form in sizes["forms"].items():
        table.add_row(name, f"{form['bytes']:,}", f"{form['bytes_a_token']:.1f}", f"{form['of_fp32']:.2%}")
    return table


WORKERS = {"prepare": prepare, "plain": work_off, "serve": serve}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the load test")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        task = json.loads(arguments.worker)
        WORKERS[task.pop("kind")](task)
    else:
        main(load=Load(minutes=arguments.minutes))
