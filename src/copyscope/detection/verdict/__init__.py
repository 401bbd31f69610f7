"""From scores to a verdict: calibration, p-values, rates, sensitivity, baselines."""
