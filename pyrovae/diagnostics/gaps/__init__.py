"""What the ELBO loses: to the guide's family, and to computing the guide for all data by one network.

`guide` reads the guide's family and moments, `bounds` fits and measures the best Gaussians, `truth` finds log p(x),
`verdict` judges each datum, `measure` puts them together.
"""

from pyrovae.diagnostics.gaps.measure import inference_gaps

__all__ = ["inference_gaps"]
