"""Change a corpus: edit captions, plant or down-weight images, and write it out again."""
