"""Networks as stacks: specs, blocks, the two players, and edits that let them grow."""
