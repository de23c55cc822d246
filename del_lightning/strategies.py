"""Lightning's strategies for several devices, told that nearly everything is frozen.

What trains, a soft prompt, an adapter, a denoiser or a codec, is small: every rank holds it, and gradients are averaged
over ranks (DDP). The frozen language model needs no averaging and no broadcast. Either every rank holds all of it, or
its decoder layers are spread over the ranks and gathered one at a time (``fsdp``), which is what lets a model train
that one device cannot hold.
"""

import copy
from typing import Any, TypeGuard

import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from del_lightning.config import TrainerConfig
from del_lightning.llm import FrozenLLM, decoder_layers


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
        self.layers: nn.ModuleList | None = None
        self.shells: list[nn.Module] = []

    @override
    def model_to_device(self) -> None:
        """Spread before moving: a whole model need not fit on the device."""
        assert self.model is not None
        self.layers = _frozen_layers(self.model) if self.spread else None
        if self.layers is not None:
            self._reuse_starts(False)
            mesh = init_device_mesh(self.root_device.type, (self.world_size,))
            self.shells = [_shell(layer) for layer in self.layers]
            for layer in self.layers:
                fully_shard(layer, mesh=mesh, ignored_params=_trained(layer))
        super().model_to_device()

    @override
    def configure_ddp(self) -> None:
        """Wrap for the averaging of gradients; frozen parameters and buffers are not even looked at."""
        assert self.model is not None
        parameters = dict(self.model.named_parameters(remove_duplicate=False))  # tied weights have two names
        frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
        frozen += [name for name, _ in self.model.named_buffers(remove_duplicate=False)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self.model, frozen)  # type: ignore[no-untyped-call]
        super().configure_ddp()

    @override
    def teardown(self) -> None:
        """Put plain layers back: from here on a rank computes without the others.

        Not after a failure, when the other ranks may not be here to give their shares.
        """
        assert self.lightning_module is not None
        if self.layers is not None and self.lightning_module.trainer.state.status != TrainerStatus.INTERRUPTED:
            for index, shell in enumerate(self.shells):
                self.layers[index] = _filled(shell, self.layers[index])
            self.layers, self.shells = None, []
            self._reuse_starts(True)
        super().teardown()

    def _reuse_starts(self, reuse: bool) -> None:
        """Whether a rank may skip what it computed before; spread layers need all ranks at the same place."""
        assert self.lightning_module is not None
        for module in self.lightning_module.modules():
            if isinstance(module, FrozenLLM):
                module.reuses_starts = reuse


def _frozen_layers(model: nn.Module) -> nn.ModuleList | None:
    """The decoder layers of the language model in it; what trains beside it may have layers of its own."""
    llm = next((module for module in model.modules() if isinstance(module, FrozenLLM)), None)
    return None if llm is None else decoder_layers(llm.model)


def _trained(layer: nn.Module) -> set[nn.Parameter]:
    return {parameter for parameter in layer.parameters() if parameter.requires_grad}


def _shell(layer: nn.Module) -> nn.Module:
    """The layer again, with the same trained parameters and buffers, its frozen parameters without storage."""
    kept: dict[int, Any] = {id(tensor): tensor for tensor in (*_trained(layer), *layer.buffers())}
    frozen = {
        id(weight): nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
        for weight in layer.parameters()
        if not weight.requires_grad
    }
    return copy.deepcopy(layer, kept | frozen)


def _filled(shell: nn.Module, spread: nn.Module) -> nn.Module:
    """The shell with the spread layer's whole weights, in main memory: the device may not hold all layers at once."""
    weights = {name: weight.full_tensor().cpu() for name, weight in spread.named_parameters() if _is_spread(weight)}
    shell.load_state_dict(weights, strict=False, assign=True)
    return shell.train(spread.training)


def _is_spread(weight: Tensor) -> TypeGuard[DTensor]:
    return isinstance(weight, DTensor)
