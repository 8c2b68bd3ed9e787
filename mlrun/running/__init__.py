"""What the executor (`mlrun.run`) hands to others: how a stage begins, what is measured in it, what is written."""
