"""Publishing Python functions as UTCP tools. Private."""
