"""Benchmarks anyone can run, each paired in one run beside what people use without Wardround."""
