"""Text encoders, vocabularies and image captioning."""
