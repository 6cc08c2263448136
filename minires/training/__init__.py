"""Training and fine-tuning: loop, optimizers, metrics."""
