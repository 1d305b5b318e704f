"""Advantages, losses, batching, the trainer and its checkpoints."""
