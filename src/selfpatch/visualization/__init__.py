"""Pictures: what patch features look like, which patches they match, and how a run went."""
