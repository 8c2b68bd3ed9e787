"""Where records go: log.jsonl is the truth; the console and the dashboards listen."""
