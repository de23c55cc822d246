"""From a configuration to the front-ends it asks for."""

from typing import Any

from del_lightning.codec import LinearCodec
from del_lightning.errors import ConfigError
from del_lightning.methods import DEL, Clean, MeanEmbedding, Method, Projection
from del_lightning.stages import codec as codec_stage
from del_lightning.stages.workspace import Setting, Workspace

NEEDS_CODEC = ("projection", "del")


def build_method(ws: Workspace, setting: Setting, codec: LinearCodec | None = None) -> Method:
    """Build the front-end of a setting on the workspace's device."""
    table = ws.embedding_table
    if setting.method in NEEDS_CODEC and codec is None:
        codec = codec_stage.load(ws)
    match setting.method, codec:
        case "clean", _:
            method: Method = Clean(table)
        case "mean", _:
            method = MeanEmbedding(table, ws.frequencies)
        case "projection", LinearCodec():
            method = Projection(table, codec)
        case "del", LinearCodec():
            mechanism = ws.config.mechanism
            assert setting.mu is not None
            method = DEL(table, codec, bits=mechanism.bits, mu=setting.mu, l2_clip=mechanism.l2_clip)
        case name, _:
            raise ConfigError(f"`methods` must hold known methods, got {name!r}")
    return method.to(ws.device)


def method_key(ws: Workspace, setting: Setting) -> dict[str, Any]:
    """A front-end's part of an artefact's key. The target is left out: equal mu is the same mechanism."""
    key: dict[str, Any] = {"name": setting.method}
    if setting.method == "mean":
        key["frequencies"] = ws.public.fingerprint
    if setting.method in NEEDS_CODEC:
        key["codec"] = codec_stage.ensure(ws).key
    if setting.method == "del":
        mechanism = ws.config.mechanism
        key |= {"mu": setting.mu, "bits": mechanism.bits, "l2_clip": mechanism.l2_clip}
    return key


def settings(ws: Workspace) -> list[Setting]:
    """The front-ends of this configuration, controls first; DEL once for each target, or once at a fixed mu."""
    from del_lightning.stages import calibrate

    found = [Setting(name) for name in ("clean", "mean", "projection") if name in ws.config.methods]
    if "del" not in ws.config.methods:
        return found
    if ws.config.mechanism.mu is not None:
        return [*found, Setting("del", mu=ws.config.mechanism.mu)]
    return [*found, *(Setting("del", mu=c.mu, target=c.target) for c in calibrate.calibrations(ws))]
