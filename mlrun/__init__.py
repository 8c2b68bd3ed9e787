"""mlrun trains transformers with a multi-level V-cycle and measures what it saved."""

__version__ = "0.1.0"
