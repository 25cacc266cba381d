"""Files with images and boxes become samples, and samples become training batches."""
