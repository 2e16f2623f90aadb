"""The settings of a training run: one table for options, TOML and the library."""

import inspect
from dataclasses import fields, replace

import pytest

import pyrovae as pv
from pyrovae.cli.settings import Settings, SettingsError, SettingsFileError, read_settings, to_toml


def test_every_option_of_fit_is_a_setting_with_the_same_default():
    for field in fields(pv.FitConfig):
        assert getattr(Settings(), field.name) == field.default, field.name


def test_every_named_part_of_build_vae_is_a_setting_with_the_same_default():
    other_name = {"scale": "noise_scale"}
    left_out = {"data_dim", "latent_dim", "data", "seed", "image_shape", "scale"}
    for name, parameter in inspect.signature(pv.build_vae).parameters.items():
        assert hasattr(Settings(), other_name.get(name, name)) or name in left_out, name
        if name not in left_out:
            assert getattr(Settings(), name) == parameter.default, name


def test_toml_round_trip(tmp_path):
    settings = replace(
        Settings(), hidden=(64, 32), noise="per-dimension", dequantize=True, early_stopping_patience=7
    )
    (tmp_path / "config.toml").write_text(to_toml(settings))
    assert read_settings(tmp_path / "config.toml", {}) == settings


def test_options_win_over_the_file_which_wins_over_defaults(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text('latent_dim = 3\nlr = 1\nprior = "flow"\n')
    settings = read_settings(path, {"latent_dim": 5, "hidden": "7", "prior": None})
    assert (settings.latent_dim, settings.lr, settings.prior, settings.hidden) == (5, 1.0, "flow", (7,))
    assert read_settings(path, {"hidden": ""}).hidden == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latent_dims = 3", "unknown setting 'latent_dims': did you mean 'latent_dim'?"),
        ("zzz = 3", "unknown setting 'zzz': the keys are data, scaling"),
        ('latent_dim = "3"', "'latent_dim' must be of kind int, got '3'"),
        ("lr = true", "'lr' must be of kind float"),
        ('hidden = "a,b"', "'hidden' must be integers such as 256,128"),
    ],
)
def test_what_is_refused(tmp_path, text, message):
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as error:
        read_settings(path, {})
    assert message in str(error.value)
    assert not isinstance(error.value, SettingsFileError)


@pytest.mark.parametrize("content", [None, b"latent_dim = ", b"data = '\xff'"])
def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path, content):
    path = tmp_path / "a.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsFileError, match=r"a\.toml cannot be read as TOML"):
        read_settings(path, {})
