"""Fit a Pyro model and guide by stochastic variational inference, and keep what was learned."""
