"""Export of trained networks to other libraries."""
