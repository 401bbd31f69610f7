"""Decode, resize and encode images: bytes -> uint8 [h w 3]."""
