"""What a training run carries from step to step, and what it sees of the model and the guide."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyrovae.training.distributed import Ranks
from pyrovae.training.learning_rate import rate_at
from pyrovae.training.objectives import ParticleObjective
from pyrovae.training.objectives.owner import owner
from pyrovae.training.shares import Share, SharedBatch

__all__ = ["Run", "Watch", "autocast"]


@dataclass
class Run:
    """What a training run carries from step to step; `share` is what this rank has of the batch under way."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    plate: str
    objective: Any
    num_particles: int
    lr: float
    lr_schedule: str = "constant"
    max_steps: int = 1
    clip_norm: float | None = None
    precision: str = "full"
    tensors: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    optimizer: torch.optim.Adam | None = None
    num_steps: int = 0
    kl_weight: float = 1.0
    ranks: Ranks = field(default_factory=Ranks)
    share: Share = field(default_factory=lambda: Share(0, 0, 0))

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return rate_at(self.num_steps, self.max_steps, self.lr, self.lr_schedule)

    @property
    def shared(self) -> SharedBatch:
        """The handler that makes losses of the share under way those of its batch."""
        return SharedBatch(self.plate, self.share, isinstance(self.objective, ParticleObjective))

    @property
    def modules(self) -> list[nn.Module]:
        """The modules that own model and guide, each once."""
        owners = [owner(self.model), owner(self.guide)]
        return list({id(m): m for m in owners if m is not None}.values())

    def state(self) -> dict[tuple[int, str], Tensor]:
        """The live tensors that training may change: of the modules and of the parameter store."""
        state = {}
        for index, module in enumerate(self.modules):
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                state[index, name] = tensor
        known = {id(tensor) for tensor in state.values()}
        return state | {(-1, name): t for key, (name, t) in self.tensors.items() if key not in known}

    def function_params(self) -> dict[str, Tensor]:
        """Constrained values of the store's parameters that belong to no module."""
        store = pyro.get_param_store()
        owned = {id(p) for module in self.modules for p in module.parameters()}
        return {
            name: store[name].detach().clone()
            for name, unconstrained in store.named_parameters()
            if "$$$" not in name and id(unconstrained) not in owned  # $$$: pyro.module's names
        }


class Watch(Messenger):
    """Notes the parameters that a computation uses, and the full size of the data plate."""

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate
        self.plate_size: int | None = None
        self.tensors: dict[int, tuple[str, Tensor]] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        value = msg["value"]
        tensor = getattr(value, "_pyro_unconstrained_param", None)
        if tensor is None:
            tensor = value.unconstrained() if hasattr(value, "unconstrained") else value
        if tensor.requires_grad:
            self.tensors[id(tensor)] = (msg["name"], tensor)

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            if msg["name"] == self.plate:  # an objective that tiles the data says for how many they stand
                self.plate_size = int(msg["infer"].get("num_data", msg["fn"].size))
        elif self.plate_size is None:
            for frame in msg["cond_indep_stack"]:
                if frame.name == self.plate:
                    self.plate_size = int(frame.full_size or frame.size)


def autocast(run: Run, device: torch.device) -> torch.autocast:
    """Products in bf16 where the run asks for it. Weights are cast anew at each use: a trace must see the cast."""
    return torch.autocast(
        device.type, dtype=torch.bfloat16, enabled=run.precision == "bf16", cache_enabled=False
    )
