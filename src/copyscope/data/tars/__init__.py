"""Tars: headers, compression, samples of WebDataset."""
