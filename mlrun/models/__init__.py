"""Architectures: one file each, read top to bottom; a YAML of conf/model names the class."""
