"""View matching: patches found in another view of the same image, a metric of dense features without labels."""
