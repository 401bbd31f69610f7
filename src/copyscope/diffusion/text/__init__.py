"""Captions -> what a denoiser is conditioned on, and pictures -> captions."""
