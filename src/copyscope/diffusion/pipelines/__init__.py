"""Mitigations and signals inside a diffusers pipeline."""
