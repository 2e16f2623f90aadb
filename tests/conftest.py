"""What every test needs: shape-checked imports, one thread, and the false-alarm rate of every statistical test."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook

install_import_hook("pyrovae", "beartype.beartype")

import matplotlib
import pyro
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def own_parameters() -> Iterator[None]:
    """What the models of a file leave in Pyro's store is not seen by the next file."""
    with pyro.get_param_store().scope():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
