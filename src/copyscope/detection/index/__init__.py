"""A training set on disk, in which a picture is looked up at once."""
