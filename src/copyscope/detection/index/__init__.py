"""An index of a training set on disk, to look up single pictures."""
