"""How fast it is here: every fast path against its plain reference, side by side in one process."""
