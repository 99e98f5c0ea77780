"""Pure tensor functions, each fast one next to its plain `*_reference`."""
