"""Per-datum log densities, draws and curvature of any Pyro model and amortized guide."""

from pyrovae.target.draws import Draws, Simulation, Terms
from pyrovae.target.target import Target

__all__ = ["Draws", "Simulation", "Target", "Terms"]
