"""Compare the pixels of the nearest candidates: the same picture, whole or in part."""
