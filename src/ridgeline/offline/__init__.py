"""Files of requests, answered without a server: lines in, lines out, resumable."""
