"""Files with pictures and boxes become samples, and samples become training batches."""
