"""Stage ``export``: what a private server and its clients need, for every DEL setting of the configuration.

    <out>/export/<key>/client/    tokenizer, integer thresholds, public token frequencies: a few megabytes, no weights
    <out>/export/<key>/server/    soft prompt, codec and their record, as SplitModel.from_artifacts reads them

Both folders hold the same manifest, and its fingerprint `setting` is what a client's request names.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from del_lightning.artifacts import Artifact, Outcome
from del_lightning.errors import ConfigError
from del_lightning.methods import DEL
from del_lightning.privacy import PrivacyStatement, SecureSampler
from del_lightning.prompt import CONFIG_FILE, WEIGHTS_FILE
from del_lightning.serve.bundle import (
    PRIOR,
    THRESHOLDS,
    TOKENIZER,
    Manifest,
    Thresholds,
    file_hash,
    quantize_prior,
)
from del_lightning.stages import codec as codec_stage
from del_lightning.stages import prompt as prompt_stage
from del_lightning.stages.setting import Setting, build_method, method_key
from del_lightning.stages.settings import settings
from del_lightning.stages.workspace import Workspace
from del_lightning.terminal import say

CLIENT, SERVER = "client", "server"
REQUIREMENTS, README = "requirements.txt", "README.md"
_SERVER_FILES = ("result.json", codec_stage.WEIGHTS, CONFIG_FILE, WEIGHTS_FILE)
_PACKAGES = ("numpy>=2.0", "tokenizers>=0.21", "httpx>=0.27")
_README = """# Client bundle

What a device needs to send prompts privately to a server of {model_name} ({label}): tokenizer, integer thresholds of
the mechanism, and public token frequencies for the preview of an attack. No language model, and no torch:

    pip install -r requirements.txt
    pip install --no-deps del-lightning
    del-lightning-client ask --bundle . --url <server> "A private prompt"

{statement}
"""


def run(ws: Workspace) -> None:
    """Export every DEL setting of the configuration.

    Raises:
        ConfigError: the configuration has none.
    """
    found = [setting for setting in settings(ws) if setting.method == DEL.name]
    if not found:
        raise ConfigError(f"`methods` must hold {DEL.name!r} for stage=export, got {ws.config.methods}")
    left_out = [name for name in ws.config.methods if name != DEL.name and ws.parameter(name) is not None]
    if left_out:
        say(f"not exported: {', '.join(left_out)} (only {DEL.name} has a client)")
    for setting in found:
        artifact = ensure(ws, setting)
        size = artifact.result.details["client_bytes"] / 1e6
        say(f"{setting.label}: client bundle of {size:.1f} MB  {artifact.folder / CLIENT}")
        say(f"  server: {artifact.folder / SERVER}")


def ensure(ws: Workspace, setting: Setting) -> Artifact:
    """Return the setting's export, building what it needs."""
    determined_by = {
        "prompt": prompt_stage.ensure(ws, setting).key,
        "label": setting.label,
        "model_name": ws.llm.name,
        "prior": ws.public.fingerprint,
        "account": asdict(ws.config.account),
        "delta": ws.config.evaluate.delta,
    }
    return ws.store.get("export", determined_by, lambda folder: _build(ws, setting, folder))


def _build(ws: Workspace, setting: Setting, folder: Path) -> Outcome:
    for name in (CLIENT, SERVER):
        shutil.rmtree(folder / name, ignore_errors=True)  # of an interrupted attempt
        (folder / name).mkdir()
    method = build_method(ws, setting)
    assert isinstance(method, DEL)
    sampler = SecureSampler(method.quantizer.bits, method.quantizer.bound, method.mu, method.codec.dim)
    thresholds = sampler.thresholds(method.code_table.cpu().double().numpy())
    artifact = prompt_stage.ensure(ws, setting)
    for name in _SERVER_FILES:
        shutil.copyfile(artifact.folder / name, folder / SERVER / name)
    manifest = _manifest(ws, setting, sampler, _fingerprint(ws, setting, artifact.folder, thresholds))
    _write_client(ws, folder / CLIENT, manifest, thresholds)
    for name, files in ((CLIENT, (TOKENIZER, THRESHOLDS, PRIOR)), (SERVER, _SERVER_FILES)):
        replace(manifest, files=_hashes(folder / name, files)).save(folder / name)
    sizes = {
        f"{name}_bytes": sum(file.stat().st_size for file in (folder / name).iterdir()) for name in (CLIENT, SERVER)
    }
    return Outcome(details={"setting": asdict(setting), "fingerprint": manifest.setting, **sizes})


def _write_client(ws: Workspace, folder: Path, manifest: Manifest, thresholds: Thresholds) -> None:
    """Everything in the client's folder but the manifest."""
    backend: Any = getattr(ws.llm.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ConfigError(f"`model.name` must have a fast tokenizer for stage=export, got {ws.llm.name!r}")
    backend.save(str(folder / TOKENIZER), pretty=False)
    np.save(folder / THRESHOLDS, thresholds)
    np.save(folder / PRIOR, quantize_prior(ws.frequencies.cpu().double().numpy()))
    (folder / REQUIREMENTS).write_text("".join(f"{package}\n" for package in _PACKAGES), encoding="utf-8")
    (folder / README).write_text(_README.format(**asdict(manifest)), encoding="utf-8")


def _manifest(ws: Workspace, setting: Setting, sampler: SecureSampler, fingerprint: str) -> Manifest:
    account, delta = ws.config.account, ws.config.evaluate.delta
    statement = PrivacyStatement.for_accountant(
        sampler.accountant(),
        sequence_tokens=account.sequence_tokens,
        user_tokens=account.user_tokens,
        delta=delta,
    )
    return Manifest(
        model=ws.llm.fingerprint,
        model_name=ws.llm.name,
        setting=fingerprint,
        label=setting.label,
        bits=sampler.bits,
        dim=sampler.dim,
        bound=sampler.bound,
        mu=sampler.mu,
        a_plus=sampler.threshold,
        amplitude=sampler.amplitude,
        vocab_size=ws.llm.vocab_size,
        prefix=ws.config.data.prefix,
        prefix_ids=tuple(ws.data.prefix_ids),
        delta=delta,
        budget_tokens=account.user_tokens,
        budget_epsilon=statement.at("user").epsilon,
        statement=statement.summary(),
        files={},
    )


def _fingerprint(ws: Workspace, setting: Setting, artifact: Path, thresholds: Thresholds) -> str:
    """16 hex digits over what both sides must agree on: mechanism, thresholds, codec and soft prompt."""
    method = {key: value for key, value in method_key(ws, setting).items() if key != "codec"}
    digest = hashlib.sha256(json.dumps([ws.llm.fingerprint, method], sort_keys=True).encode())
    digest.update(thresholds.tobytes())
    for name in (codec_stage.WEIGHTS, WEIGHTS_FILE):
        digest.update((artifact / name).read_bytes())
    return digest.hexdigest()[:16]


def _hashes(folder: Path, names: tuple[str, ...]) -> Mapping[str, str]:
    return {name: str(file_hash(folder / name)) for name in names}
