import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from del_lightning.data.generation import Example, collate
from del_lightning.errors import ArtifactError, ConfigError, FrameError
from del_lightning.methods import Release
from del_lightning.serve.exports import Export, MismatchError, find_export, load_exports
from del_lightning.wire import Frame, Header, decode_frame, read_header
from tests.serve.stand import Stand, codes_of, frame_of


def header(stand: Stand, number: int = 0, **changes: object) -> Header:
    return read_header(frame_of(stand, codes_of(stand, 4, 0, number), number, **changes))


def frame(stand: Stand, number: int = 0, **changes: object) -> Frame:
    return decode_frame(frame_of(stand, codes_of(stand, 4, 0, number), number, **changes))


def test_embeddings_are_those_of_an_offline_evaluation(stand: Stand) -> None:
    codes = codes_of(stand, 7, 1)
    export = Export(stand.folders[0], stand.llm)
    prompt = export.prompt(decode_frame(frame_of(stand, codes)))
    batch = collate([Example(prompt.prefix, [0] * 7, [], 0)], pad_id=0)
    expected = stand.split().embed(batch, Release(torch.from_numpy(codes)[None]))
    assert torch.equal(export.embed(prompt), expected[0])


def test_decoding_is_unbiased_for_the_clients_codes(stand: Stand) -> None:
    """Client and server use the same A: codes of one token, drawn often, decode to its code on average."""
    bundle, export = stand.bundle(), Export(stand.folders[0], stand.llm)
    codes = bundle.release(np.full(20_000, 42))
    mean = export.method.quantizer.decode(torch.from_numpy(codes)).mean(dim=0)
    amplitude = bundle.manifest.amplitude
    torch.testing.assert_close(mean, export.method.code_table[42], atol=5 * amplitude / (7 * 20_000) ** 0.5, rtol=0)


def test_an_export_is_found_by_its_fingerprints(stand: Stand) -> None:
    exports = stand.exports()
    for number in range(2):
        found = find_export(exports, header(stand, number))
        assert found.folder == stand.folders[number]
    offered = [f"{one.manifest.model}/{one.manifest.setting}" for one in exports.values()]
    for wrong in ({"setting": "0" * 16}, {"model": "f" * 16}):
        with pytest.raises(MismatchError, match="must be one of " + ", ".join(offered)):
            find_export(exports, header(stand, **wrong))


@pytest.mark.parametrize("change", [{"bits": 4}, {"a_plus": (1 << 31) + 12345}])
def test_codes_of_another_mechanism_are_refused(stand: Stand, change: dict[str, int]) -> None:
    (name,) = change
    with pytest.raises(MismatchError, match=f"`{name}` of the frame must be .* for its setting, got {change[name]}"):
        find_export(stand.exports(), header(stand, **change))


def test_codes_of_another_width_are_refused(stand: Stand) -> None:
    wide = read_header(frame_of(stand, np.zeros((3, 9), dtype=np.uint8)))
    with pytest.raises(MismatchError, match="`dim` of the frame must be 4 for its setting, got 9"):
        find_export(stand.exports(), wide)


def test_public_text_is_tokenised_as_in_training(stand: Stand) -> None:
    export = Export(stand.folders[0], stand.llm)
    manifest = export.manifest
    prompt = export.prompt(frame(stand, prefix=manifest.prefix, suffix=" and so"))
    assert tuple(prompt.prefix) == manifest.prefix_ids
    assert prompt.suffix == stand.llm.tokenizer(" and so")["input_ids"]
    assert len(prompt) == len(prompt.prefix) + 4 + len(prompt.suffix)
    with pytest.raises(FrameError, match=f"must be below {stand.llm.vocab_size}, got {stand.llm.vocab_size}"):
        export.prompt(frame(stand, suffix=(1, stand.llm.vocab_size)))


def test_needs_exports_and_different_ones(stand: Stand) -> None:
    with pytest.raises(ConfigError, match="must name a folder that stage=export wrote, got none"):
        load_exports([], stand.llm)
    with pytest.raises(ConfigError, match="must hold different settings"):
        load_exports([stand.folders[0]] * 2, stand.llm)


def test_a_manifest_of_another_mechanism_is_refused(stand: Stand, tmp_path: Path) -> None:
    shutil.copytree(stand.folders[0], tmp_path / "copy")
    path = tmp_path / "copy" / "server" / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"amplitude": 1.01 * content["amplitude"]}))
    with pytest.raises(ArtifactError, match=r"manifest.json must state its artefact's mechanism, got another"):
        Export(tmp_path / "copy", stand.llm)
