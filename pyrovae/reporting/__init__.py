"""Figures drawn from result trees."""
