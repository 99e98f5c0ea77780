"""COCO detection and instance segmentation: Mask R-CNN on a pre-trained backbone, AP of boxes and of masks."""
