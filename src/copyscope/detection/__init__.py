"""Tower 1: look at images. Is it a copy, of what, why. Never imports `copyscope.diffusion`."""
