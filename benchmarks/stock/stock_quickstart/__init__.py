"""Stock Flower on the message API: full state dict both ways, evaluation in its own message."""
