"""Pages in the browser: the demo, and the review of boxes."""
