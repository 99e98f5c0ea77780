"""Preparation of a data set: images made smaller once, in tar shards, with lists of damaged and of similar ones."""
