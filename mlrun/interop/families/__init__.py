"""One file per Hugging Face family: names, options and how its configuration is read and written."""
