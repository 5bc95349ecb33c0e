"""Losses see logits, regularisers see a step; none knows the others, so they combine freely."""
