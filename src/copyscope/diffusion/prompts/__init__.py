"""Score prompts before images are made."""
