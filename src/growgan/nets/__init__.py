"""Specs of networks, the networks built from them, and the edits by which they grow."""
