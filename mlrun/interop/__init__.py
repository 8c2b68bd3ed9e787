"""To and from Hugging Face folders, without `transformers`: name tables, configuration dictionaries, safetensors."""
