"""What is made for a release: hashes to install with, and a list of all that is installed."""
