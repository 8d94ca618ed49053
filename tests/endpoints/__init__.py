"""The manuals of examples/endpoints, each against the server it was written for.

The servers are other people's, unmodified, on loopback. What is missing on the machine is installed; what cannot be
installed is skipped, and the skip says why.
"""
