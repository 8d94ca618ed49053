"""The language of call templates; pure, no I/O. Private."""
