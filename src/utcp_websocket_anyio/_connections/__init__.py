"""Connections and their pool. Private."""
