"""Processes of one machine: how one starts another, and what passes between them."""
