"""Video object segmentation on DAVIS-2016 and DAVIS-2017: labels of the first frame propagated, and scored."""
