"""Are two pictures the same, whole or in part: pixel comparison of the nearest candidates."""
