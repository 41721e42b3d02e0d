"""The settings of a run: one frozen tree, a file for each part of it, checked when it is made."""
