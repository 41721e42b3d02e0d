"""Benchmarks. Each compares Wardround with another program of the same purpose, in one run."""
