"""One call or stream, from its arguments to its responses. Private."""
