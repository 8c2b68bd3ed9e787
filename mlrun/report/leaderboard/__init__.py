"""Results for a public table: one JSON each with all that redoing it needs, and rules (docs/leaderboard.md)."""
