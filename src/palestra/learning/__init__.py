"""Wing 3, learning: rollouts, losses, the trainer."""
