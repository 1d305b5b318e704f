"""Wing 1, the world: sandboxes, agents, grading, episodes and the server in front of them."""
