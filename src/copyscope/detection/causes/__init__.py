"""Why training images were copied, and what to do about each."""
