"""Bringing images from a registry into the store that sandboxes start from."""
