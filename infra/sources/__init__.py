"""Where models come from: a folder here, the Hugging Face Hub, or an object store."""
