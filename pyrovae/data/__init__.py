"""Data: digits, any idx, npy, npz or csv file, reversible transforms, and a set whose answers are known exactly."""

from pyrovae.data.files import DataError
from pyrovae.data.sets import LinearGaussian, digits, linear_gaussian
from pyrovae.data.sources import RawData, read
from pyrovae.data.splits import Split, load, split_indices
from pyrovae.data.transforms import Affine, Dequantize, Pipeline

__all__ = [
    "Affine",
    "DataError",
    "Dequantize",
    "LinearGaussian",
    "Pipeline",
    "RawData",
    "Split",
    "digits",
    "linear_gaussian",
    "load",
    "read",
    "split_indices",
]
