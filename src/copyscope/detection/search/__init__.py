"""Nearest vectors: exact, by an IVF index, by sign codes, or distributed."""
