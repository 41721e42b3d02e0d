"""The one program of a site: a connection to the server, and a worker process that does the training."""
