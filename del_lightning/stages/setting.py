"""A front-end at one privacy level: what it is called, what determines it, and how it is built."""

from dataclasses import dataclass
from typing import Any

from del_lightning.codec import LinearCodec
from del_lightning.errors import ConfigError
from del_lightning.methods import DEL, Clean, MeanEmbedding, Method, Projection
from del_lightning.stages import codec as codec_stage
from del_lightning.stages.workspace import Workspace

NEEDS_CODEC = ("projection", "del")


@dataclass(frozen=True)
class Setting:
    """One front-end of the leaderboard at one privacy level.

    Attributes:
        method: clean, mean, projection or del.
        mu: GDP parameter a token of DEL, else None.
        target: ASR that mu was calibrated to, if it was.
    """

    method: str
    mu: float | None = None
    target: float | None = None

    @property
    def label(self) -> str:
        """What tables print."""
        names = {"clean": "Clean prompt", "mean": "Mean embedding", "projection": "Projection, no noise"}
        if self.method in names:
            return names[self.method]
        # The number mu stands in the table, beside its epsilons, and nowhere alone.
        return f"DEL, ASR {self.target:g}" if self.target is not None else "DEL, given mu"

    @property
    def slug(self) -> str:
        """Word for file and metric names."""
        if self.mu is None:
            return self.method
        return f"{self.method}-asr{self.target:g}" if self.target is not None else f"{self.method}-mu{self.mu:g}"


def build_method(ws: Workspace, setting: Setting, codec: LinearCodec | None = None) -> Method:
    """Build the front-end of a setting on the workspace's device."""
    table = ws.embedding_table
    if setting.method in NEEDS_CODEC and codec is None:
        codec = codec_stage.load(ws)
    match setting.method, codec:
        case "clean", _:
            method: Method = Clean(table)
        case "mean", _:
            method = MeanEmbedding(table)
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
        key["over"] = "vocabulary"
    if setting.method in NEEDS_CODEC:
        key["codec"] = codec_stage.ensure(ws).key
    if setting.method == "del":
        mechanism = ws.config.mechanism
        key |= {"mu": setting.mu, "bits": mechanism.bits, "l2_clip": mechanism.l2_clip}
    return key
