"""The one training loop, the joint loss and checkpoints."""
