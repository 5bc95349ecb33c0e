"""Runs: the search loop and everything it writes into, and reads from, a run directory."""
