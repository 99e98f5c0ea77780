"""Fine-tuning the whole network on labelled images: ImageNet, a share of its labels, or any other data set."""
