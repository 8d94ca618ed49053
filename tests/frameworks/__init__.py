"""What uses UTCP, with this plugin: the session `frameworks` runs each module in an environment of its own."""
