"""What runs in a peer's own interpreter: scripts that import nothing of ours but what lies beside them.

Only this folder is on their path; a folder with more in it would offer the peers modules that they take for others'.
"""
