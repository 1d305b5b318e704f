"""Tasks: where they come from, what kinds of rows there are, and the generated katas."""
