"""A folder `flwr run` takes: stock Flower with nothing of Wardround in it."""
