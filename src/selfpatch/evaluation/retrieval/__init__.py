"""Image retrieval on revisited Oxford and Paris: database images ranked by the cosine of image features."""
