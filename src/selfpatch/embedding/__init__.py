"""Features of many images in one file: encoding that can be resumed, the formats, and a reader."""
