"""Training: heads, freezing, schedules, the loop, the activation cache and checkpoints."""
