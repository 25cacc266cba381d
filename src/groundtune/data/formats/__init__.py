"""Readers and writers of annotation formats; `detect` chooses the reader for a folder."""
