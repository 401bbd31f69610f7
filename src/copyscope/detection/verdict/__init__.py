"""Scores -> what may be said: calibration, p-values, rates, sensitivity, baselines."""
