"""Find copies: which generated images copy training images, why, and how sure that is."""
