"""Proxies that others wrote, in a session of their own: ``nox -s proxies``."""
