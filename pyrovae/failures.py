"""What torch and Pyro say where model or guide do not fit the data, in a sentence with the cure."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["UNEQUAL", "explained", "explaining", "unequal_sites"]

SHAPES = "Trace Shapes:"  # begins the table that Pyro appends to errors of model and guide
PLATE = "Shape mismatch inside plate"
NO_KERNEL = "not implemented for '"  # of a dtype; other kinds of NotImplementedError say what they mean
UNEQUAL = {
    "Found vars in model but not guide": "only in the model",
    "Found non-auxiliary vars in guide but not model": "only in the guide",
}
"""How Pyro's warnings of unequal sites begin, and where those sites are."""


def explained(error: Exception, data: Sequence[Any], role: str = "model or guide") -> ValueError | None:
    """An error of a run of model or guide in better words; None where its own are as good.

    Args:
        error: what was raised.
        data: the arguments of model and guide.
        role: which of them was run.

    >>> str(explained(RuntimeError("shapes differ"), [torch.zeros(3, 2)], "guide"))[:79]
    'the guide failed on data of shape [n, 2] and dtype torch.float32: shapes differ'
    """
    text, table, _ = str(error).partition(SHAPES)
    text = text.strip()
    is_of_torch = type(error) in (RuntimeError, IndexError) or NO_KERNEL in text
    if (is_of_torch or text.startswith(PLATE)) and (cure := _cure(text, data)):
        return ValueError(f"the {role} failed on {_described(data)}: {text}; {cure}")
    return ValueError(text) if table and isinstance(error, ValueError) else None


@contextmanager
def explaining(data: Sequence[Any], role: str) -> Iterator[None]:
    """Errors of the block in better words, see `explained`."""
    try:
        yield
    except Exception as error:
        if (told := explained(error, data, role)) is not None:
            raise told from error
        raise


def unequal_sites(warning: Warning) -> ValueError | None:
    """The refusal of a model and a guide that Pyro warns have not the same latent sites; None for another warning.

    >>> str(unequal_sites(UserWarning("Found vars in model but not guide: {'z'}")))[:75]
    "model and guide must have the same latent sites, but {'z'} is only in the m"
    """
    text = str(warning)
    for start, place in UNEQUAL.items():
        if text.startswith(start):
            sites = text.rpartition(":")[2].strip()
            return ValueError(
                f"model and guide must have the same latent sites, but {sites} is {place}: draw it in both, or "
                "condition the model on it; if model and guide were swapped, pass the model first"
            )
    return None


def _described(data: Sequence[Any]) -> str:
    shapes = [", ".join(["n", *map(str, x.shape[1:])]) for x in data]
    return "data of " + " and ".join(
        f"shape [{shape}] and dtype {x.dtype}" for shape, x in zip(shapes, data, strict=True)
    )


def _cure(text: str, data: Sequence[Any]) -> str:
    if text.startswith(PLATE):
        return (
            "a distribution whose rows are vectors wants .to_event(1), so that its batch shape is the plate's"
        )
    default = torch.get_default_dtype()
    if re.search("dtype|scalar type|" + NO_KERNEL, text) and any(x.dtype != default for x in data):
        return f"parameters are {default} unless they were converted: pass x.to({default})"
    if re.search("shape|size|dim", text):
        return "axis 0 is that of the data: give one datum the shape that the networks take"
    return ""
