"""The environment over HTTP: Gym's wire protocol in front of the episode runner."""
