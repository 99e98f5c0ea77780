"""Settings of a run, recipes, and the schema that checks them."""
