"""The processes of one run: who this is, what they tell each other, what each holds of a model."""
