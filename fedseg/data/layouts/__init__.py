"""Folders that people have on their disks."""
