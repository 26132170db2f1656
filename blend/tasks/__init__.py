"""Built-in tasks: a trained network with its splits."""
