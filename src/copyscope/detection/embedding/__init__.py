"""Images -> descriptor vectors, each image once, cached by content."""
