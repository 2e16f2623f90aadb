"""Samplers and estimators on plain tensors: they know nothing of Pyro."""
