"""What is made for a release: files of hashes to install from, and a list of all that is installed."""
