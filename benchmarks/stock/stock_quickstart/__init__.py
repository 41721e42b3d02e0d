"""Stock Flower on the message API: full state dict both ways, evaluation as a message of its own."""
