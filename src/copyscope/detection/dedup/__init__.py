"""Near-duplicate groups of a training set, by pixels and by captions."""
