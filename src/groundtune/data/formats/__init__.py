"""Annotation formats: each is read into the one `Sample`; `detect` finds out which one a folder is in."""
