"""Per-datum log densities, draws and curvature of any Pyro model and amortized guide."""

from pyrovae.target.target import Draws, Simulation, Target, Terms

__all__ = ["Draws", "Simulation", "Target", "Terms"]
