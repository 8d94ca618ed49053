"""How each server is installed and run."""
