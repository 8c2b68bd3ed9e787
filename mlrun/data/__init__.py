"""Data: specs (the `_target_` of conf/data) that open a Source of batches. Specs import no torch."""
