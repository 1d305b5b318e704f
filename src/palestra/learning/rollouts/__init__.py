"""Clients of environment and gateway, the scheduler, groups and filters."""
