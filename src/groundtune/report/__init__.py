"""Report: one HTML file that answers what a run came to."""
