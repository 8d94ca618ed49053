"""Addresses, credentials, and how this process reaches the network. Private."""
