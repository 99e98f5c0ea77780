"""Multi-crop augmentation: parameters are drawn first, then rendered."""
