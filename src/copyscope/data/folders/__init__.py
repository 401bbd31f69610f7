"""Roles of files and folders: images, masks, splits, the folders of trainers."""
