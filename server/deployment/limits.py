"""Limits that several parts of the deployment share."""

MOST_ATTEMPTS = 3
"""A question whose answer is lost is asked again; this is the limit on all attempts in a round."""
