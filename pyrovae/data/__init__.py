"""Data: digits, any idx, npy, npz, csv or zarr file, reversible transforms, and a set whose answers are known."""

from pyrovae.data.files import DataError
from pyrovae.data.rows import Rows
from pyrovae.data.sets import LinearGaussian, digits, linear_gaussian
from pyrovae.data.sources import RawData, read
from pyrovae.data.splits import Split, load, reopen, split_indices
from pyrovae.data.transforms import Affine, Dequantize, Pipeline

__all__ = [
    "Affine",
    "DataError",
    "Dequantize",
    "LinearGaussian",
    "Pipeline",
    "RawData",
    "Rows",
    "Split",
    "digits",
    "linear_gaussian",
    "load",
    "read",
    "reopen",
    "split_indices",
]
