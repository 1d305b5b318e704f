"""What stands beside our own trainer: hooks and launchers for the trainers of others."""
