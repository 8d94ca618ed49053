"""Who may use which connection, and what keeps it alive. Private."""
