"""Lightning's strategies for several devices, told that nearly everything is frozen.

What trains, a soft prompt, an adapter, a denoiser or a codec, is small: every rank holds it, and gradients are averaged
over ranks (DDP). The frozen language model needs no averaging and no broadcast. Either every rank holds all of it, or
its decoder layers are spread over the ranks and gathered one at a time (``fsdp``), which is what lets a model train
that one device cannot hold.
"""

from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from del_lightning.config import TrainerConfig
from del_lightning.llm import FrozenLLM


def strategy(config: TrainerConfig) -> Any:
    """What Lightning's Trainer takes as its strategy."""
    if config.devices * config.num_nodes == 1:
        return "auto"
    return FrozenBackboneDDP(spread=config.strategy == "fsdp")


class FrozenBackboneDDP(DDPStrategy):
    """DDP that leaves frozen parameters where they are, or spreads those of repeated layers over the ranks.

    Args:
        spread: Spread the decoder layers' frozen parameters. They are put together again when training ends, since
            later stages run on one device.
    """

    def __init__(self, *, spread: bool) -> None:
        super().__init__()
        self.spread = spread
        self.layers: list[FSDPModule] = []

    @override
    def model_to_device(self) -> None:
        """Spread before moving: a whole model need not fit on the device."""
        assert self.model is not None
        if self.spread:
            self._reuse_starts(False)
            mesh = init_device_mesh(self.root_device.type, (self.world_size,))
            self.layers = [_spread(layer, mesh) for layer in repeated_layers(self.model)]
        super().model_to_device()

    @override
    def configure_ddp(self) -> None:
        """Wrap for the averaging of gradients; frozen parameters and buffers are not even looked at."""
        assert self.model is not None
        parameters = dict(self.model.named_parameters(remove_duplicate=False))  # tied weights have two names
        frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
        frozen += [name for name, _ in self.model.named_buffers(remove_duplicate=False)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, frozen)
        super().configure_ddp()

    @override
    def teardown(self) -> None:
        """Gather spread layers for good: from here on a rank computes without the others."""
        for layer in self.layers:
            _keep_whole(layer, True)
            layer.unshard()
        if self.spread:
            self.layers.clear()
            self._reuse_starts(True)
        super().teardown()

    def _reuse_starts(self, reuse: bool) -> None:
        assert self.lightning_module is not None
        for module in self.lightning_module.modules():
            if isinstance(module, FrozenLLM):
                module.reuses_starts = reuse


def _spread(layer: nn.Module, mesh: DeviceMesh) -> FSDPModule:
    """Spread a layer's frozen parameters over the mesh; again, if an earlier training did."""
    if isinstance(layer, FSDPModule):
        _keep_whole(layer, False)
        layer.reshard()
        return layer
    trained = {parameter for parameter in layer.parameters() if parameter.requires_grad}
    return fully_shard(layer, mesh=mesh, ignored_params=trained)


def _keep_whole(layer: FSDPModule, whole: bool) -> None:
    """Whether a layer that was gathered stays so."""
    layer.set_reshard_after_forward(not whole)
    layer.set_reshard_after_backward(not whole)


def repeated_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers of the language model in ``model``: members of its longest list of modules of one class."""
    lists = [list(part) for part in model.modules() if isinstance(part, nn.ModuleList)]
    same = [layers for layers in lists if layers and all(type(layer) is type(layers[0]) for layer in layers)]
    return max(same, key=len, default=[])
