"""Wrap whatever makes images so that it hands out no copy."""
