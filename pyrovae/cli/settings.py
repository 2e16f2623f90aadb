"""The settings of a training run: one table that is the command line's options and the TOML file's keys."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_type_hints

__all__ = ["Settings", "SettingsError", "SettingsFileError", "kind_of", "read_settings", "to_toml"]


class SettingsError(ValueError):
    """A key that is not known, or a value of the wrong kind."""


class SettingsFileError(SettingsError):
    """A file that is not there, or is not TOML."""


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `pyrovae train` was asked for: data, parts of the VAE, training. Names are those of the library."""

    data: str = _option("digits", "digits, or idx:PATH, npy:PATH, npz:PATH, csv:PATH, zarr:PATH.")
    scaling: str = _option("unit", "unit ([0, 1]), standardize, or none.")
    dequantize: bool | None = _option(
        None,
        "Add uniform noise to integers; by default where the data are integers and not the decoder's, bernoulli.",
    )
    val_fraction: float = _option(0.15, "Share of the data for validation.")
    test_fraction: float = _option(0.15, "Share of the data for testing.")
    dtype: str = _option("float32", "float32 or float64, of model and data.")
    latent_dim: int = _option(8, "Number of latent coordinates.")
    prior: str = _option("standard", "standard, gaussian, mixture, vamp, flow or spline.")
    decoder: str = _option("gaussian", "gaussian, linear, bernoulli or student-t.")
    encoder: str = _option("diagonal", "diagonal, full, low-rank, flow, mixture or laplace.")
    noise: str | None = _option(None, "fixed, shared, per-dimension, heteroscedastic or optimal.")
    network: str = _option("mlp", "mlp, residual or conv.")
    hidden: tuple[int, ...] = _option((256,), "Widths of the hidden layers, such as 256,128.")
    channels: tuple[int, ...] = _option((32, 64), "Channels of the convolutions, such as 32,64.")
    activation: str = _option("relu", "relu, gelu, silu, elu, leaky_relu, softplus or tanh.")
    noise_scale: float = _option(0.3, "The decoder's sigma, or where a learned one starts.")
    min_scale: float = _option(1e-3, "Floor of a learned sigma.")
    components: int = _option(10, "Components of the mixture prior.")
    encoder_components: int = _option(3, "Components of the mixture encoder.")
    rank: int = _option(1, "Rank of the low-rank encoder.")
    pseudo_inputs: int = _option(50, "Pseudo-inputs of the vamp prior.")
    df: float = _option(5.0, "Degrees of freedom of the student-t decoder.")
    objective: str = _option("elbo", "elbo, analytic_kl, stl, iwae, dreg, rws, ...: what `fit` takes.")
    num_particles: int = _option(1, "Draws of z for each datum and step.")
    num_outer: int | None = _option(None, "Of miwae and piwae: the bounds that are averaged.")
    beta: float | None = _option(None, "Of ciwae: the weight of the ELBO in it.")
    alpha: float | None = _option(None, "Of renyi: the order of the bound.")
    num_transitions: int | None = _option(None, "Of hmc: the transitions of each chain; 4 by default.")
    chunk_size: int | None = _option(None, "Particles in one graph.")
    lr: float = _option(1e-3, "Adam's learning rate.")
    lr_schedule: str = _option("constant", "constant or cosine.")
    clip_norm: float | None = _option(None, "Largest norm of the gradients.")
    precision: str = _option("full", "full or bf16.")
    compile: str = _option("auto", "auto, true or false: run the step as a compiled program.")
    batch_size: int = _option(64, "Data in a step.")
    max_epochs: int = _option(100, "Epochs at the most.")
    kl_weight: float = _option(1.0, "Factor of the KL term; 1 is the ELBO.")
    n_epochs_kl_warmup: int = _option(0, "Epochs over which that factor rises.")
    early_stopping_patience: int | None = _option(
        None, "Stop after that many epochs without a better validation ELBO."
    )
    keep_epochs: tuple[int, ...] = _option(
        (), "Epochs after which the model is kept, such as 0,1,5,20; 0 is before training."
    )
    seed: int = _option(0, "Seed of split, weights and training.")


def kind_of(name: str) -> type:
    """The kind of a setting without "or None": str, int, float, bool or tuple."""
    hint = get_type_hints(Settings)[name]
    kinds = (
        [kind for kind in get_args(hint) if kind is not type(None)]
        if type(None) in get_args(hint)
        else [hint]
    )
    return tuple if get_args(kinds[0]) else kinds[0]


def read_settings(path: Path | None, given: Mapping[str, Any]) -> Settings:
    """Defaults, then the TOML file, then what was given on the command line (None: not given).

    Raises:
        SettingsFileError: the file cannot be read, or is not TOML.
        SettingsError: a key is unknown (with the nearest known one), or a value is of another kind.

    >>> read_settings(None, {"latent_dim": 3, "hidden": "64,32", "lr": None}).hidden
    (64, 32)
    """
    values = {**_from_file(path), **{name: value for name, value in given.items() if value is not None}}
    return Settings(**{name: _checked(name, value) for name, value in values.items()})


def _from_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsFileError(f"{path} cannot be read as TOML: {error}") from error


def _checked(name: str, value: Any) -> Any:
    known = [f.name for f in fields(Settings)]
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
        raise SettingsError(f"unknown setting {name!r}: {hint}")
    kind = kind_of(name)
    if kind is tuple:
        return _widths(name, value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise SettingsError(f"setting {name!r} must be of kind {kind.__name__}, got {value!r}")
    return value


def _widths(name: str, value: Any) -> tuple[int, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(int(part) for part in parts if part != "")
    except (TypeError, ValueError) as error:
        raise SettingsError(f"setting {name!r} must be integers such as 256,128, got {value!r}") from error


def to_toml(settings: Settings) -> str:
    """The settings as a TOML file that `read_settings` reads back; what is None is left out.

    >>> "latent_dim = 3" in to_toml(Settings(latent_dim=3))
    True
    """
    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    return "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items() if value is not None)
