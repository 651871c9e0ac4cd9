"""Fine-tuning: the loop, its phases, an epoch, a step, and what becomes of them."""
