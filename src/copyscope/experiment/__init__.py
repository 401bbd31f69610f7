"""Train, sample and audit a grid of conditions, and compare them."""
