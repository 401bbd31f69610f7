"""Nearest-vector search: exact, IVF, sign codes, distributed."""
