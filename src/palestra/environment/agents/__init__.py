"""What works on a task inside a sandbox."""
