"""Training: student and teacher, the step, the loop, and what watches it."""
