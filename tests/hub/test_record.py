"""A published folder: what goes in comes out, bit by bit, and nothing that was changed on the way is loaded."""

import json
import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from del_lightning.config import Config, ModelConfig
from del_lightning.errors import ArtifactError
from del_lightning.hub.record import FILES, HASHED, SplitRecord, read_folder
from del_lightning.llm import FrozenLLM
from del_lightning.methods import DEL, Clean
from del_lightning.methods.posterior import PosteriorDEL
from del_lightning.prompt import SoftPrompt
from del_lightning.report.schema import Leaderboard
from del_lightning.serve.bundle import file_hash
from del_lightning.split import SplitModel
from tests.hub.factory import BITS, DIM, MU, PREFIX, TOKENS, VIRTUAL, batch_of, board_of, make_split, own_row
from tests.report.factory import row

Json = dict[str, Any]


def outputs(split: SplitModel) -> tuple[torch.Tensor, torch.Tensor]:
    """What the device sends and what the server makes of it, under a fixed generator."""
    batch = batch_of()
    release = split.release(batch, torch.Generator().manual_seed(0))
    return release.payload, split.logits(batch, release)


@pytest.mark.parametrize("l2_clip", [None, 0.7])
@pytest.mark.parametrize("measured", [True, False])
def test_what_is_loaded_computes_the_same_bits(
    tiny_llm: Callable[..., FrozenLLM], tmp_path: Path, measured: bool, l2_clip: float | None
) -> None:
    split = make_split(tiny_llm, l2_clip=l2_clip)
    config = asdict(Config()) | {"mechanism": {"bits": BITS, "mu": MU, "l2_clip": l2_clip}}
    split.save_pretrained(tmp_path / "one", results=board_of(split, config=config) if measured else None)
    loaded = SplitModel.from_pretrained(tmp_path / "one", split.llm)
    for ours, theirs in zip(outputs(split), outputs(loaded), strict=True):
        assert torch.equal(ours, theirs)
    assert loaded.prefix == PREFIX
    assert not loaded.training


def test_what_is_loaded_is_published_as_it_came(split: SplitModel, tmp_path: Path) -> None:
    first = split.save_pretrained(tmp_path / "first")
    second = SplitModel.from_pretrained(first, split.llm).save_pretrained(tmp_path / "second")
    names = {path.name for path in first.iterdir()}
    assert names == set(FILES) - {"results.json"}
    assert {name: (first / name).read_bytes() for name in names} == {
        path.name: path.read_bytes() for path in second.iterdir()
    }


def test_the_record_says_what_it_holds(split: SplitModel, folder: Path) -> None:
    record, codec, prompt = read_folder(folder)
    assert (record.bits, record.dim, record.mu, record.virtual_tokens) == (BITS, DIM, MU, VIRTUAL)
    assert record.model.fingerprint == split.llm.fingerprint
    assert isinstance(split.method, DEL)
    assert record.privacy == split.method.statement(TOKENS).columns()  # of the prompts that were measured
    assert record.files == {name: file_hash(folder / name) for name in HASHED}
    assert codec.dim == DIM
    assert prompt.virtual_tokens == VIRTUAL


def test_only_the_rows_of_this_front_end_and_its_controls_are_published(folder: Path) -> None:
    board = Leaderboard.model_validate_json((folder / "results.json").read_bytes())
    assert [(one.method, one.soft_prompt) for one in board.rows] == [
        *((name, soft) for name in ("clean", "mean") for soft in (False, True)),
        ("del", False),
        ("del", True),
    ]
    assert {one.value for one in board.rows} == {None, MU}
    assert [one.method for one in board.calibrations] == ["del"]


def test_publishing_again_replaces_and_leaves_no_old_results(split: SplitModel, folder: Path) -> None:
    (folder / ".gitattributes").touch()  # hidden files are somebody else's
    split.save_pretrained(folder)
    assert not (folder / "results.json").exists()
    assert (folder / ".gitattributes").exists()
    SplitModel.from_pretrained(folder, split.llm)


# --- places of this machine --------------------------------------------------------------------------------------


def test_no_place_of_this_machine_is_published(tiny_llm: Callable[..., FrozenLLM], tmp_path: Path) -> None:
    home = tmp_path / "home" / "some body"
    split = make_split(tiny_llm, name=str(home / "my-llama"))
    config = asdict(Config())
    config["model"]["name"], config["out"] = split.llm.name, f"{home}/runs"
    config["serve"]["exports"] = [f"{home}/a", "../b/c", "~/d"]
    config["serve"]["vllm_url"] = "http://127.0.0.1:8001/v1"
    notes = [f"Read from {tmp_path}/home/x.parquet, and/or 3 / 4.", f"model.name={home}/my-llama"]
    overrides = [f"out={home}/runs", f"serve.exports=[{tmp_path}/a,{tmp_path}/b]", f"model.name={home}/my-llama"]
    board = board_of(split, config=config, notes=notes, overrides=overrides, encoder=str(home / "my-bert"))
    folder = split.save_pretrained(tmp_path / "published", results=board)
    for path in folder.iterdir():
        content = path.read_bytes()
        assert str(tmp_path).encode() not in content, path.name
        assert b"some body" not in content, path.name
    kept = Leaderboard.model_validate_json((folder / "results.json").read_bytes())
    assert kept.model == "my-llama"
    assert kept.encoder == "my-bert"
    assert kept.notes == ["Read from x.parquet, and/or 3 / 4.", "model.name=my-llama"]
    assert kept.overrides == ["out=runs", "serve.exports=[a,b]", "model.name=my-llama"]
    assert kept.config["serve"]["exports"] == ["a", "c", "d"]
    assert kept.config["serve"]["vllm_url"] == "http://127.0.0.1:8001/v1"
    assert kept.config["data"]["prefix"] == Config().data.prefix


# --- refused when written ----------------------------------------------------------------------------------------


def refused(call: Callable[[], object], expected: str) -> None:
    with pytest.raises(ArtifactError, match=re.escape(expected)) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_only_del_with_a_soft_prompt_is_published(split: SplitModel, tmp_path: Path) -> None:
    method = split.method
    assert isinstance(method, DEL)
    table = method.embedding_table
    prior = torch.zeros(len(table)).log_softmax(0)
    posterior = PosteriorDEL(table, method.codec, prior, bits=method.bits, mu=method.mu)
    for other, got in (
        (SplitModel(split.llm, split.method), "got del without a soft prompt"),
        (SplitModel(split.llm, Clean(split.llm.embedding_table()), split.prompt), "got clean"),
        (SplitModel(split.llm), "got no front-end without a soft prompt"),
        (SplitModel(split.llm, posterior, split.prompt), "got del-posterior"),
    ):
        refused(lambda other=other: other.save_pretrained(tmp_path / "x"), got)
    assert not (tmp_path / "x").exists()


def test_a_folder_with_other_files_is_left_alone(split: SplitModel, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    refused(lambda: split.save_pretrained(tmp_path), "must be empty or hold an earlier publication, got thesis.tex")
    refused(lambda: split.save_pretrained(tmp_path / "thesis.tex"), "must be a folder, got a file")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": "another"}, "must be of the model 'tiny-llama', got those of 'another'"),
        ({"rows": [row("clean", True), row(0.1, True)]}, "mu 30, 3 bits and width 4, got Clean prompt, DEL, ASR 0.1"),
        ({"rows": []}, "got no rows"),
        ({"config": {"mechanism": {"l2_clip": 2.0}}}, "must have the mechanism's l2_clip None, got 2.0"),
    ],
)
def test_results_of_something_else_are_refused(split: SplitModel, tmp_path: Path, changes: Json, expected: str) -> None:
    refused(lambda: split.save_pretrained(tmp_path / "x", results=board_of(split, **changes)), expected)
    assert list((tmp_path / "x").iterdir()) == []


def test_results_of_another_soft_prompt_are_refused(split: SplitModel, tmp_path: Path) -> None:
    without = board_of(split, rows=[row("clean", True), own_row(split, soft_prompt=False)])
    refused(lambda: split.save_pretrained(tmp_path / "x", results=without), "must hold DEL with a soft prompt")
    longer = board_of(split, rows=[own_row(split, virtual_tokens=99)])
    refused(
        lambda: split.save_pretrained(tmp_path / "x", results=longer), "must have this soft prompt's length, got 99"
    )


# --- refused when read -------------------------------------------------------------------------------------------


def test_another_language_model_is_refused(tiny_llm: Callable[..., FrozenLLM], folder: Path) -> None:
    other = tiny_llm(hidden=32, seed=1)
    refused(lambda: SplitModel.from_pretrained(folder, other), "was made for tiny-llama with fingerprint")


def test_a_language_model_of_nobody_else_must_be_brought(folder: Path) -> None:
    refused(lambda: SplitModel.from_pretrained(folder), "was made for tiny-llama, which is on no hub: pass it as `llm`")


def test_a_public_language_model_is_loaded_with_it(
    tiny_llm: Callable[..., FrozenLLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, asked = make_split(tiny_llm, name="somebody/tiny"), []

    def load(config: ModelConfig) -> FrozenLLM:
        asked.append(config)
        return split.llm

    monkeypatch.setattr("del_lightning.split.load_llm", load)
    config = asdict(Config())
    config["model"] |= {"name": "somebody/tiny", "revision": "v2"}
    folder = split.save_pretrained(tmp_path / "x", results=board_of(split, config=config))
    assert SplitModel.from_pretrained(folder).llm is split.llm
    assert asked == [ModelConfig(name="somebody/tiny", revision="v2")]
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "somebody/tiny"


def change_json(path: Path, change: Callable[[Json], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def sign(folder: Path) -> None:
    """What a hostile publisher does last: put the hashes of the files into the record, and leave out its own."""
    hashes = {name: found for name in HASHED if (found := file_hash(folder / name))}
    change_json(folder / "del_lightning.json", lambda record: record.update(files=hashes, sha256=None))


def damage(folder: Path) -> None:
    content = bytearray((folder / "codec.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "codec.safetensors").write_bytes(bytes(content))


def nested(folder: Path) -> None:
    (folder / "results.json").unlink()
    (folder / "results.json").mkdir()


ON_THE_WAY: dict[str, tuple[Callable[[Path], object], str]] = {
    "damaged": (damage, "codec.safetensors must have the SHA-256"),
    "missing": (lambda f: (f / "codec.safetensors").unlink(), "must hold codec.safetensors, got none"),
    "results missing": (
        lambda f: (f / "results.json").unlink(),
        "published must hold results.json, which del_lightning.json names, got none",
    ),
    "results of somebody else": (
        lambda f: change_json(f / "del_lightning.json", lambda record: record["files"].pop("results.json")),
        "del_lightning.json must name every file beside it, got no hash of results.json",
    ),
    "codec of another shape": (
        lambda f: save_file({"encoder.weight": torch.ones(3, 32)}, f / "codec.safetensors"),
        "codec.safetensors must have the SHA-256 ",
    ),
    "soft prompt missing": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        "published must hold adapter_model.safetensors, got none",
    ),
    "no record": (lambda f: (f / "del_lightning.json").unlink(), "found no del_lightning.json"),
    "unknown file": (lambda f: (f / "model.pkl").touch(), "must hold only README.md, "),
    "unknown folder": (lambda f: (f / "code").mkdir(), "got code (no file)"),
    "folder for a file": (nested, "got results.json (no file)"),
    "dead link": (lambda f: (f / "modeling.py").symlink_to("nowhere"), "got modeling.py (no file)"),
    "record of a newer format": (
        lambda f: change_json(f / "del_lightning.json", lambda record: (record.update(format=2), record.pop("mu"))),
        "del_lightning.json must have format 1, got 2: update del-lightning",
    ),
    "record of no format": (
        lambda f: change_json(f / "del_lightning.json", lambda record: record.pop("format")),
        "del_lightning.json must have format 1, got none",
    ),
    "unknown key": (
        lambda f: change_json(f / "del_lightning.json", lambda record: record.update(auto_map="evil.py")),
        "del_lightning.json must hold known keys only, got auto_map",
    ),
    "key missing": (
        lambda f: change_json(f / "del_lightning.json", lambda record: record["model"].pop("dtype")),
        "del_lightning.json must hold model.dtype, got none",
    ),
    "mu of text": (
        lambda f: change_json(f / "del_lightning.json", lambda record: record.update(mu="much\nnoise")),
        "del_lightning.json: mu must be a valid number, unable to parse string as a number, got 'much\\nnoise'",
    ),
    "mu made smaller": (
        lambda f: change_json(f / "del_lightning.json", lambda record: record.update(mu=15.5)),
        "del_lightning.json must state the guarantee of its own mu 15.5, bits 3, dim 4, got that of mu 30, bits 3, ",
    ),
    "mu made larger": (
        lambda f: change_json(f / "del_lightning.json", lambda record: record.update(mu=60)),
        "del_lightning.json must state the guarantee of its own mu 60, bits 3, dim 4, got that of mu 30, bits 3, ",
    ),
    "another clip": (
        lambda f: change_json(f / "del_lightning.json", lambda record: record.update(l2_clip=0.5)),
        "del_lightning.json must be as it was published, got another SHA-256 than it names",
    ),
    "another instruction": (
        lambda f: change_json(f / "del_lightning.json", lambda record: record.update(prefix="Answer:")),
        "del_lightning.json must be as it was published, got another SHA-256 than it names",
    ),
    "half a record": (
        lambda f: (f / "del_lightning.json").write_text('{"format": 1'),
        "del_lightning.json must be whole JSON: Expecting ',' delimiter: line 1 column 13",
    ),
    "empty record": (lambda f: (f / "del_lightning.json").write_text(""), "del_lightning.json must be whole JSON: "),
    "record of bytes": (
        lambda f: (f / "del_lightning.json").write_bytes(b"\xff\xfe\x00"),
        "del_lightning.json must be whole JSON: ",
    ),
    "hash of text": (
        lambda f: change_json(f / "del_lightning.json", lambda r: r["files"].update({"results.json": "my\nhash"})),
        "del_lightning.json: files.results.json must match pattern '^[0-9a-f]{64}$', got 'my\\nhash'",
    ),
    "list for a record": (
        lambda f: (f / "del_lightning.json").write_text("[]"),
        "del_lightning.json must hold one JSON object, got list",
    ),
    "endless nesting": (
        lambda f: (f / "del_lightning.json").write_text("[" * 100_000),
        "del_lightning.json must be whole JSON: ",
    ),
}


@pytest.mark.parametrize("name", ON_THE_WAY)
def test_a_folder_that_changed_on_the_way_is_refused(split: SplitModel, folder: Path, name: str) -> None:
    change, expected = ON_THE_WAY[name]
    change(folder)
    refused(lambda: SplitModel.from_pretrained(folder, split.llm), expected)


def test_no_folder_and_an_empty_one_are_no_publication(tmp_path: Path) -> None:
    refused(lambda: read_folder(tmp_path), "must be a published front-end, found no del_lightning.json")
    refused(lambda: read_folder(tmp_path / "nowhere"), "must be a published front-end, found no del_lightning.json")


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = load_file(folder / name)
        change(content)
        save_file({key: value.contiguous() for key, value in content.items()}, folder / name)

    return apply


class Bomb:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("write", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_no_pickle_is_ever_loaded(split: SplitModel, folder: Path, name: str, write: Callable[..., None]) -> None:
    trace = folder.parent / "trace"
    with (folder / name).open("wb") as file:
        write(Bomb(trace), file)
    if name != "del_lightning.json":
        sign(folder)
    with pytest.raises(ArtifactError, match=re.escape(f"{name} must be ")) as caught:
        SplitModel.from_pretrained(folder, split.llm)
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    with (folder / name).open("rb") as file, suppress(Exception):
        (pickle.load if write is pickle.dump else partial(torch.load, weights_only=False))(file)
    assert trace.exists()  # it would have gone off


def record_with(**changes: Any) -> Callable[[Path], None]:
    """Another record, with what its guarantee is said to follow from."""

    def change(record: Json) -> None:
        facts = record["privacy"]["parameters"]
        record.update(changes)
        facts.update(
            {name: value for name, value in changes.items() if name in facts and isinstance(value, float | int)}
        )

    return lambda folder: change_json(folder / "del_lightning.json", change)


def stated(name: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(
        folder / "del_lightning.json", lambda record: record["privacy"].update({name: value})
    )


def measured(change: Callable[[list[Json]], object]) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "results.json", lambda board: change(board["rows"]))


def adapter(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "adapter_config.json", lambda config: config.update(changes))


CODEC, PROMPT = "codec.safetensors", "adapter_model.safetensors"
SIGNED: dict[str, tuple[Callable[[Path], None], str]] = {
    "narrower codec": (
        tensors(CODEC, lambda t: t.update({"encoder.weight": t["encoder.weight"][:3]})),
        "must hold encoder.weight as F32 (4, 32), got F32 (3, 32)",
    ),
    "half precision": (
        tensors(CODEC, lambda t: t.update({"decoder.weight": t["decoder.weight"].half()})),
        "must hold decoder.weight as F32 (32, 4), got F16 (32, 4)",
    ),
    "another tensor": (tensors(CODEC, lambda t: t.update(extra=torch.ones(1))), "bound, got bound, decoder.weight, "),
    "NaN in the codec": (tensors(CODEC, lambda t: t["encoder.weight"][0].fill_(torch.nan)), "finite numbers"),
    "infinity in the prompt": (tensors(PROMPT, lambda t: t["prompt_embeddings"][1].fill_(torch.inf)), "finite numbers"),
    "longer prompt": (
        tensors(PROMPT, lambda t: t.update(prompt_embeddings=torch.ones(6, 32))),
        "must hold prompt_embeddings as F32 (5, 32), got F32 (6, 32)",
    ),
    "another bound": (tensors(CODEC, lambda t: t["bound"].mul_(2)), "must have the record's bound"),
    "negative bound": (tensors(CODEC, lambda t: t["bound"].neg_()), "must be a codec's safetensors file"),
    "half a codec": (
        lambda f: (f / CODEC).write_bytes((f / CODEC).read_bytes()[:50]),
        "codec.safetensors must be a safetensors file: ",
    ),
    "another adapter": (adapter(peft_type="LORA"), "got other keys or values"),
    "another key": (adapter(auto_mapping={"base_model_class": "Evil"}), "got other keys or values"),
    "heads of text": (adapter(num_attention_heads="two"), "got other keys or values"),
    "no JSON": (
        lambda f: (f / "adapter_config.json").write_text("[" * 100_000),
        "adapter_config.json must be whole JSON: ",
    ),
    "token epsilon too good": (stated("epsilon_token", 1.0), "must state a epsilon_token of at least"),
    "prompt epsilon too good": (stated("epsilon_sequence", 1.0), "must state a epsilon_sequence of at least"),
    "effective mu too good": (stated("mu_effective", 1.0), "must state a mu_effective of at least"),
    "mu too good": (stated("mu_token", 29.9), "must state a mu_token of at least 30"),
    "NaN epsilon": (stated("epsilon_token", "NaN"), "must state a epsilon_token of at least"),
    "no epsilon": (stated("epsilon_token", None), "must state a epsilon_token of at least"),
    "no delta": (stated("delta", None), "must state a guarantee for a prompt, got none"),
    "endless prompt": (stated("sequence_tokens", 1 << 60), "must state a guarantee for a prompt, got 115292150"),
    "negative prompt": (stated("sequence_tokens", -1), "must hold a possible mechanism: `sequence_tokens`"),
    "impossible delta": (stated("delta", 2.0), "must hold a possible mechanism: `delta`"),
    "stronger mechanism": (record_with(mu=60.0), "must state a mu_token of at least 60"),
    "no noise": (record_with(mu=1e300), "must hold a possible mechanism: `ratio`"),
    "no number": (record_with(mu="NaN"), "del_lightning.json: mu must be a finite number, got 'NaN'"),
    "nine bits": (record_with(bits=9), "del_lightning.json: bits must be less than or equal to 8, got 9"),
    "another width": (record_with(dim=5), "must hold encoder.weight as F32 (5, 32)"),
    "results of another mechanism": (
        measured(lambda rows: rows[-1]["privacy"]["parameters"].update(mu=2.0)),
        "results.json must hold the mechanism mu 30, bits 3, dim 4 and its controls, got DEL, ASR 0.1",
    ),
    "results of a newer schema": (
        lambda f: change_json(f / "results.json", lambda board: board.update(schema_version=99, further=1)),
        "results.json must have schema_version 2, got 99: update del-lightning",
    ),
    "half of the results": (
        lambda f: (f / "results.json").write_bytes((f / "results.json").read_bytes()[:500]),
        "results.json must be whole JSON: Unterminated string",
    ),
    "results of nothing": (
        measured(lambda rows: rows.clear()),
        "must hold the mechanism mu 30, bits 3, dim 4 and its controls, got no row",
    ),
    "results too good": (
        measured(lambda rows: rows[-1]["privacy"].update(epsilon_sequence=3.0)),
        "results.json must state a epsilon_sequence of at least",
    ),
}


@pytest.mark.parametrize("name", SIGNED)
def test_a_hostile_publication_is_refused_though_its_hashes_fit(split: SplitModel, folder: Path, name: str) -> None:
    change, expected = SIGNED[name]
    change(folder)
    sign(folder)
    refused(lambda: SplitModel.from_pretrained(folder, split.llm), expected)


def test_a_more_modest_guarantee_is_nobody_s_loss(split: SplitModel, folder: Path) -> None:
    stated("epsilon_sequence", "Infinity")(folder)
    sign(folder)
    SplitModel.from_pretrained(folder, split.llm)


def test_a_hash_is_of_the_file_not_of_what_this_version_makes_of_it(
    split: SplitModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(SplitRecord):
        """Has a key that older files lack."""

        further: float | None = None

    monkeypatch.setattr("del_lightning.hub.record.SplitRecord", Later)
    assert SplitModel.from_pretrained(folder, split.llm).prefix == split.prefix


def test_a_record_from_before_it_had_a_hash_is_read(split: SplitModel, folder: Path) -> None:
    change_json(folder / "del_lightning.json", lambda record: record.pop("sha256"))
    assert SplitModel.from_pretrained(folder, split.llm).prefix == split.prefix


def test_the_card_may_be_edited(split: SplitModel, folder: Path) -> None:
    (folder / "README.md").write_text("# Mine")
    SplitModel.from_pretrained(folder, split.llm)
    (folder / "README.md").unlink()
    SplitModel.from_pretrained(folder, split.llm)


def test_a_soft_prompt_loads_alone(split: SplitModel, folder: Path) -> None:
    assert split.prompt is not None
    assert torch.equal(SoftPrompt.load(folder).embeddings, split.prompt.embeddings)
