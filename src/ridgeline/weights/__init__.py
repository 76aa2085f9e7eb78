"""Weight files: finding them, reading them without trusting them, and handing out packed tensors."""
