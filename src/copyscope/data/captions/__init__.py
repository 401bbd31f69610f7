"""Captions and columns of images: metadata tables, JSON files, text files, prompts inside images."""
