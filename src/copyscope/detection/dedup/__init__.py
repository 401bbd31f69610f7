"""Near-duplicate groups of a training set, by pictures and by captions."""
