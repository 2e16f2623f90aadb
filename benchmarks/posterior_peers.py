"""The peers: NUTS of NumPyro, BlackJAX and Pyro on the same posteriors, each as fast as we know how to run it."""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import torch
from posterior_problem import Problem, draw_starts
from posterior_rows import Drawn, Row, Seconds, now

__all__ = ["SAMPLERS"]

CHUNK = 100  # transitions of one call of NumPyro's compiled program, which serves warm-up and draws

Density = Callable[[Any, Any], Any]
"""(datum, z [D]) -> log p(x, z)."""


def jax_density(problem: Problem, row: Row) -> tuple[Density, Any]:
    """The density in JAX, and what it has to know of each datum, axis 0 of each array."""
    import jax.numpy as jnp

    decoder, x = problem.decoder, problem.x[: row.num_measured]
    first, first_bias, last, last_bias = (
        jnp.asarray(each) for each in (decoder.first, decoder.first_bias, decoder.last, decoder.last_bias)
    )
    if row.density == "generic":
        return partial(_generic, first, first_bias, last, last_bias, decoder.scale), jnp.asarray(x.numpy())
    centre, gram, linear, constant = (jnp.asarray(each.numpy()) for each in collapse(problem, x))
    return partial(_collapsed, first, first_bias, gram), (centre, linear, constant)


def _generic(first: Any, first_bias: Any, last: Any, last_bias: Any, scale: float, x: Any, z: Any) -> Any:
    import jax

    rest = (x - jax.nn.relu(z @ first + first_bias) @ last - last_bias) / scale
    return -0.5 * ((z**2).sum() + (rest**2).sum())


def _collapsed(first: Any, first_bias: Any, gram: Any, datum: Any, z: Any) -> Any:
    """One product by the Gram matrix gives value and gradient: that of `quadratic` is 2 gram step, as it should be."""
    import jax

    centre, linear, constant = datum
    step = jax.nn.relu(z @ first + first_bias) - centre
    turned = jax.lax.stop_gradient(step @ gram)
    quadratic = 2.0 * (turned @ step) - jax.lax.stop_gradient(turned @ step)
    return -0.5 * ((z**2).sum() + constant - 2.0 * (linear @ step) + quadratic)


def collapse(problem: Problem, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What log p(x | z) depends on: with r the residual at the guide's mean, where the hidden layer is c,

    |x - mean|^2 = |r|^2 - 2 (r last') (h - c) + (h - c)' (last last') (h - c), all over sigma^2.

    Returns:
        c `[N, H]`, the Gram matrix `[H, H]`, r last' `[N, H]` and |r|^2 `[N]`.
    """
    decoder = problem.decoder
    first, first_bias, last, last_bias = (
        torch.from_numpy(each)
        for each in (decoder.first, decoder.first_bias, decoder.last, decoder.last_bias)
    )
    with torch.no_grad():
        centre = torch.relu(problem.vae.encoder(x).mean @ first + first_bias)
        rest = (x - centre @ last - last_bias) / decoder.scale
        return (
            centre,
            last @ last.mT / decoder.scale**2,
            rest @ last.mT / decoder.scale,
            rest.square().sum(-1),
        )


def _over(function: Callable[..., Any], num_chained: int = 1) -> Callable[..., Any]:
    """Over chains and data; the first arguments have both axes, the last one that of data."""
    import jax

    both = (0,) * num_chained
    return jax.vmap(jax.vmap(function, (*both, 0)), (*both, None))


def numpyro_nuts(problem: Problem, row: Row) -> Drawn:
    """NumPyro's NUTS kernel under vmap over data and chains, each with its own adaptation, all in lockstep.

    `MCMC(chain_method="vectorized")` takes one posterior at a time, and is slower: `numpyro_loop`.
    """
    import jax
    from numpyro.infer.hmc import hmc

    density, data = jax_density(problem, row)
    init, sample = hmc(potential_fn_gen=lambda datum: lambda z: -density(datum, z), algo="NUTS")
    shape = (row.num_chains, row.num_measured)

    def start(z: Any, key: Any, datum: Any) -> Any:
        return init(z, row.warmup_steps, dense_mass=row.dense, rng_key=key, model_args=(datum,))

    def chunk(state: Any, data: Any) -> Any:
        move = _over(lambda state, datum: sample(state, model_args=(datum,), model_kwargs={}))

        def step(state: Any, _: None) -> Any:
            state = move(state, data)
            return state, (state.z, state.num_steps)

        return jax.lax.scan(step, state, None, length=CHUNK)

    seconds, began = Seconds(), now()
    keys = jax.random.split(jax.random.PRNGKey(0), shape)
    state = jax.jit(_over(start, 2))(draw_starts(problem, *shape), keys, data)
    program = jax.jit(chunk).lower(state, data).compile()
    seconds.add("compilation", began)
    state, _ = _chunks(program, state, data, row.warmup_steps, seconds, "warmup")
    _, parts = _chunks(program, state, data, row.num_samples, seconds, "draws")
    z, num_steps = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in range(2))
    return Drawn(z.swapaxes(0, 1), int(num_steps.sum()), seconds)


def _chunks(program: Any, state: Any, data: Any, count: int, seconds: Seconds, phase: str) -> Any:
    import jax

    if count % CHUNK:
        raise ValueError(f"NumPyro moves by {CHUNK} transitions here, of which {count} is no multiple")
    began, parts = now(), []
    for _ in range(count // CHUNK):
        state, part = jax.block_until_ready(program(state, data))
        parts.append(part)
    seconds.add(phase, began)
    return state, parts


def numpyro_loop(problem: Problem, row: Row) -> Drawn:
    """NumPyro as its documentation has it: MCMC with vectorized chains, one datum after another, compiled once."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC, NUTS

    density, data = jax_density(problem, row)

    def model(datum: Any) -> None:
        z = numpyro.sample("z", dist.Normal(jnp.zeros(row.latent_dim), 1.0).to_event(1))
        numpyro.factor("x", density(datum, z) + 0.5 * (z**2).sum())

    sampler = MCMC(
        NUTS(model, dense_mass=row.dense),
        num_warmup=row.warmup_steps,
        num_samples=row.num_samples,
        num_chains=row.num_chains,
        chain_method="vectorized",
        progress_bar=False,
        jit_model_args=True,
    )
    starts = draw_starts(problem, row.num_chains, row.num_measured)

    def one(i: int, seconds: Seconds) -> tuple[np.ndarray, int]:
        datum, began = jax.tree.map(lambda each: each[i], data), now()
        sampler.post_warmup_state = None
        sampler.warmup(jax.random.PRNGKey(i), datum, init_params={"z": starts[:, i]})
        jax.block_until_ready(sampler.post_warmup_state.z)
        seconds.add("warmup", began)
        began = now()
        sampler.run(sampler.post_warmup_state.rng_key, datum, extra_fields=("num_steps",))
        z = np.asarray(sampler.get_samples(group_by_chain=True)["z"])
        seconds.add("draws", began)
        return z, int(np.asarray(sampler.get_extra_fields()["num_steps"]).sum())

    first, seconds = Seconds(), Seconds()
    one(0, first)
    zs, counts = zip(*(one(i, seconds) for i in range(row.num_measured)), strict=True)
    share = (seconds.warmup + seconds.draws) / row.num_measured
    seconds.compilation = max(0.0, first.warmup + first.draws - share)
    return Drawn(np.stack(zs, 2), sum(counts), seconds)


def blackjax_nuts(problem: Problem, row: Row) -> Drawn:
    """BlackJAX's window adaptation and NUTS under vmap over data and chains, all in lockstep."""
    import blackjax
    import jax

    density, data = jax_density(problem, row)
    shape = (row.num_chains, row.num_measured)

    def adapt(key: Any, z: Any, datum: Any) -> Any:
        function = partial(density, datum)
        warmup = blackjax.window_adaptation(blackjax.nuts, function, is_mass_matrix_diagonal=not row.dense)
        return warmup.run(key, z, num_steps=row.warmup_steps)[0]

    def sample(key: Any, adapted: Any, datum: Any) -> Any:
        state, parameters = adapted
        kernel = blackjax.nuts(partial(density, datum), **parameters)

        def step(state: Any, key: Any) -> Any:
            state, info = kernel.step(key, state)
            return state, (state.position, info.num_integration_steps)

        return jax.lax.scan(step, state, jax.random.split(key, row.num_samples))[1]

    keys = [jax.random.split(jax.random.PRNGKey(seed), shape) for seed in range(2)]
    seconds, starts = Seconds(), draw_starts(problem, *shape)
    adapted = _run(_over(adapt, 2), (keys[0], starts, data), seconds, "warmup")
    z, num_steps = _run(_over(sample, 2), (keys[1], adapted, data), seconds, "draws")
    return Drawn(np.asarray(z).transpose(0, 2, 1, 3), int(np.asarray(num_steps).sum()), seconds)


def _run(function: Callable[..., Any], arguments: Any, seconds: Seconds, phase: str) -> Any:
    import jax

    began = now()
    program = jax.jit(function).lower(*arguments).compile()
    seconds.add("compilation", began)
    began = now()
    out = jax.block_until_ready(program(*arguments))
    seconds.add(phase, began)
    return out


def pyro_nuts(problem: Problem, row: Row) -> Drawn:
    """Pyro's NUTS, one chain of one datum after another: on the VAE's own model, or on the collapsed potential."""
    import pyro
    from pyro.infer import MCMC, NUTS

    problem.vae.requires_grad_(False).eval()
    seconds, zs, num_gradients = Seconds(), [], 0
    for i in range(row.num_measured):
        x = problem.x[i : i + 1]
        marks: list[tuple[tuple[float, float], int]] = []
        pyro.set_rng_seed(i)
        start = problem.vae.encoder(x).sample()
        with mock.patch("pyro.infer.mcmc.nuts.velocity_verlet", wraps=_verlet()) as verlet:
            if row.density == "generic":
                kernel, arguments = NUTS(problem.vae.model, full_mass=row.dense), [x]
            else:
                kernel, arguments = NUTS(potential_fn=_potential(problem, x), full_mass=row.dense), []
            sampler = MCMC(
                kernel,
                num_samples=row.num_samples,
                warmup_steps=row.warmup_steps,
                disable_progbar=True,
                initial_params={"z": start},
                hook_fn=lambda *_, marks=marks, verlet=verlet: marks.append((now(), verlet.call_count)),
            )
            began = now()
            sampler.run(*arguments)
        (warm, before), (end, after) = marks[row.warmup_steps - 1], marks[-1]
        seconds.add("warmup", began, warm)
        seconds.add("draws", warm, end)
        num_gradients += after - before
        zs.append(sampler.get_samples()["z"].reshape(1, row.num_samples, row.latent_dim).numpy())
    return Drawn(np.stack(zs, 2), num_gradients, seconds)


def _verlet() -> Callable[..., Any]:
    from pyro.ops.integrator import velocity_verlet

    step: Callable[..., Any] = velocity_verlet
    return step


def _potential(problem: Problem, x: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    centre, gram, linear, constant = collapse(problem, x)
    first, first_bias = (
        torch.from_numpy(each) for each in (problem.decoder.first, problem.decoder.first_bias)
    )

    def potential(params: dict[str, torch.Tensor]) -> torch.Tensor:
        z = params["z"]
        step = torch.relu(z @ first + first_bias) - centre
        turned = step.detach() @ gram
        quadratic = 2.0 * (turned * step).sum() - (turned * step.detach()).sum()
        return 0.5 * (z.square().sum() + constant.sum() - 2.0 * (linear * step).sum() + quadratic)

    return potential


SAMPLERS: dict[str, Callable[[Problem, Row], Drawn]] = {
    "numpyro": numpyro_nuts,
    "numpyro-loop": numpyro_loop,
    "blackjax": blackjax_nuts,
    "pyro": pyro_nuts,
}
"""Every peer by name."""
