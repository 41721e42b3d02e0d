"""Scripts for a release: requirements with hashes, and a list of packages (SBOM)."""
