"""Training of one GAN: step, loop, checkpoints, health checks, distributed training."""
