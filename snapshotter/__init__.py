"""The road: bytes on demand. Empty until images are pulled lazily."""
