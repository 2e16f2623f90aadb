"""Who trains: pyrovae, Pyro, hand-written PyTorch, NumPyro and pythae, each as fast as we know how to run it.

A trainer is called with the problem, the size of a batch, the number of epochs, and `tell`, which it calls after each
epoch with a function that gives its weights; it stops where `tell` says so.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from training_problem import MIN_SCALE, Problem, Weights, make_vae, weights_of

__all__ = ["TRAINERS"]

LR = 1e-3
Tell = Callable[[Callable[[], Weights]], bool]


class _Done(Exception):  # noqa: N818, it is no error
    """Enough epochs."""


def _sizes(problem: Problem) -> tuple[int, int, int]:
    return problem.x.shape[1], problem.hidden, problem.latent_dim


def pyrovae(
    compile_: str | bool, precision: str, problem: Problem, size: int, epochs: int, tell: Tell
) -> None:
    """`fit`, as its users call it."""
    import torch

    import pyrovae as pv

    vae = make_vae(_sizes(problem))

    def progress(*_: Any) -> None:
        if tell(partial(weights_of, vae)):
            raise _Done

    options = {
        "lr": LR,
        "batch_size": size,
        "max_epochs": epochs,
        "compile": compile_,
        "precision": precision,
    }
    with suppress(_Done):
        pv.fit(vae.model, vae.guide, torch.from_numpy(problem.x), progress=progress, **options)


def pyro_svi(problem: Problem, size: int, epochs: int, tell: Tell) -> None:
    """`SVI.step` of Pyro with its Adam on the same model and guide, without validation."""
    import pyro
    import torch
    from pyro.infer import SVI, Trace_ELBO

    vae, x = make_vae(_sizes(problem)), torch.from_numpy(problem.x)
    pyro.enable_validation(False)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": LR}), Trace_ELBO())
    for epoch in range(epochs):
        for index in torch.from_numpy(_order(problem, epoch)).split(size):
            svi.step(x[index])
        if tell(partial(weights_of, vae)):
            return


def torch_by_hand(compiles: bool, problem: Problem, size: int, epochs: int, tell: Tell) -> None:
    """The same VAE without a probabilistic language: fused Adam, no number read in an epoch."""
    import torch
    from torch import Tensor

    vae, x = make_vae(_sizes(problem)), torch.from_numpy(problem.x)
    encoder, decoder, log_scale = vae.encoder.net, vae.decoder.net, vae.decoder.noise.log_scale

    def loss(x: Tensor) -> Tensor:
        mean, log_variance = encoder(x).chunk(2, -1)
        eps = torch.randn_like(mean)
        z = mean + (0.5 * log_variance.clamp(-30, 30)).exp() * eps
        variance = (2 * log_scale).exp() + MIN_SCALE**2
        constant = x.numel() * (2 * math.pi * variance).log()
        reconstruction = -0.5 * ((x - decoder(z)).square().sum() / variance + constant)
        # log p(z) - log q(z | x) of the draw, as the others have it
        return -reconstruction + 0.5 * (z.square() - eps.square() - log_variance).sum()

    optimizer = torch.optim.Adam(vae.parameters(), lr=LR, fused=True)
    function = torch.compile(loss, dynamic=False) if compiles else loss
    for epoch in range(epochs):
        losses = []
        for index in torch.from_numpy(_order(problem, epoch)).split(size):
            optimizer.zero_grad()
            value = function(x.index_select(0, index))
            value.backward()
            optimizer.step()
            losses.append(value.detach())
        torch.stack(losses).tolist()
        if tell(partial(weights_of, vae)):
            return


def numpyro_svi(scans: bool, problem: Problem, size: int, epochs: int, tell: Tell) -> None:
    """NumPyro's `SVI.update` under jit with donated state, one call a step or one scan an epoch."""
    import jax
    import numpyro
    from numpyro.infer import SVI, Trace_ELBO

    model, guide = _numpyro_programs(problem)
    svi = SVI(model, guide, numpyro.optim.Adam(LR), Trace_ELBO())
    x = jax.numpy.asarray(problem.x)
    state = svi.init(jax.random.PRNGKey(0), x[:size])
    update = jax.jit(lambda state, index: svi.update(state, x[index]), donate_argnums=0)
    epoch_update = jax.jit(
        lambda state, order: jax.lax.scan(lambda s, i: svi.update(s, x[i]), state, order), donate_argnums=0
    )
    for epoch in range(epochs):
        order = _order(problem, epoch)
        whole = len(order) // size
        if scans:
            state, losses = epoch_update(state, order[: whole * size].reshape(whole, size))
        else:
            losses = []
            for index in order[: whole * size].reshape(whole, size):
                state, loss = update(state, index)
                losses.append(loss)
        if whole * size < len(order):
            state, _ = update(state, order[whole * size :])
        jax.block_until_ready((state, losses))
        params = svi.get_params(state)
        if tell(lambda params=params: {name: np.asarray(value) for name, value in params.items()}):
            return


def _numpyro_programs(problem: Problem) -> tuple[Callable[[Any], None], Callable[[Any], None]]:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    def dense(name: str, h: Any) -> Any:
        kernel, bias = (numpyro.param(key, jnp.asarray(problem.start[key])) for key in (name, f"{name}_bias"))
        return h @ kernel + bias

    def model(x: Any) -> None:
        log_scale = numpyro.param("log_scale", jnp.asarray(problem.start["log_scale"]))
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(problem.latent_dim), 1.0).to_event(1))
            loc = dense("dec1", jax.nn.relu(dense("dec0", z)))
            scale = jnp.hypot(jnp.exp(log_scale), MIN_SCALE)
            numpyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def guide(x: Any) -> None:
        mean, log_variance = jnp.split(dense("enc1", jax.nn.relu(dense("enc0", x))), 2, -1)
        scale = jnp.exp(0.5 * jnp.clip(log_variance, -30, 30))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.Normal(mean, scale).to_event(1))

    return model, guide


def pythae_trainer(problem: Problem, size: int, epochs: int, tell: Tell) -> None:
    """pythae's `BaseTrainer` on its `VAE` of the same networks; its noise is fixed, so no ELBO is compared."""
    import logging
    import tempfile

    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from pythae.trainers.training_callbacks import TrainingCallback

    logging.disable(logging.CRITICAL)
    parts = make_vae(_sizes(problem))

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = parts.encoder.net

        def forward(self, x: Any) -> ModelOutput:
            mean, log_variance = self.net(x).chunk(2, -1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = parts.decoder.net

        def forward(self, z: Any) -> ModelOutput:
            return ModelOutput(reconstruction=self.net(z))

    class Told(TrainingCallback):
        def on_epoch_end(self, training_config: Any, **kwargs: Any) -> None:
            if tell(dict):
                raise _Done

    config = VAEConfig(input_dim=(problem.x.shape[1],), latent_dim=problem.latent_dim)
    with tempfile.TemporaryDirectory() as folder:
        options = BaseTrainerConfig(
            output_dir=folder,
            learning_rate=LR,
            per_device_train_batch_size=size,
            num_epochs=epochs,
            optimizer_cls="Adam",
            no_cuda=True,
        )
        x = torch.from_numpy(problem.x)
        data = BaseDataset(x, torch.zeros(len(x)))
        trainer = BaseTrainer(VAE(config, Encoder(), Decoder()), data, None, options, callbacks=[Told()])
        with suppress(_Done):
            trainer.train()


def _order(problem: Problem, epoch: int) -> np.ndarray:
    return np.random.default_rng(epoch).permutation(len(problem.x))


TRAINERS: dict[str, Callable[[Problem, int, int, Tell], None]] = {
    "Pyro SVI.step": pyro_svi,
    "pyrovae, compile=False": partial(pyrovae, False, "full"),
    "pyrovae, compile='auto'": partial(pyrovae, "auto", "full"),
    "pyrovae, compile=True": partial(pyrovae, True, "full"),
    "pyrovae, compile=True, bf16": partial(pyrovae, True, "bf16"),
    "PyTorch by hand, eager": partial(torch_by_hand, False),
    "PyTorch by hand, torch.compile": partial(torch_by_hand, True),
    "NumPyro, jit": partial(numpyro_svi, False),
    "NumPyro, scan": partial(numpyro_svi, True),
    "pythae's trainer": pythae_trainer,
}
"""Every trainer by name; the first sets the ELBO that the others have to reach."""
