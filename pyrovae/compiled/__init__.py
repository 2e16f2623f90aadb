"""Run a Pyro computation as one tensor program: traced once, compiled, with its noise as an explicit input."""

from pyrovae.compiled.noise import draw_noise, with_noise
from pyrovae.compiled.program import FallbackWarning, Program, compiled, traced

__all__ = ["FallbackWarning", "Program", "compiled", "draw_noise", "traced", "with_noise"]
