"""Distilling step-by-step (Hsieh et al., 2023), native to JAX."""

__version__ = "0.1.0"
