"""A UTCP client for both event loops. Private."""
