"""Change a corpus (captions, weights, subsets) and export it."""
