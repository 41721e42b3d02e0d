"""The commands of `wardround-site`, one file for each group.

PyTorch and Flower take seconds to load. So a command that needs them imports its module
when it runs; everything else is imported at the top.
"""
