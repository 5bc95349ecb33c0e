"""Trains and scores candidates in this process, on Ray workers, or in several processes at once."""
