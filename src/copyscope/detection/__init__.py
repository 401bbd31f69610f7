"""Find copies: which images copy training images, why, and how sure that is. Never imports `copyscope.diffusion`."""
