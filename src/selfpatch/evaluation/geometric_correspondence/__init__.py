"""Geometric correspondence on NAVI: points of an object found in another view of it, scored in centimetres."""
