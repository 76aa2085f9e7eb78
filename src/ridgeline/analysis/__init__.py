"""What the hardware can do, what a program should take on it, and how the two compare."""
