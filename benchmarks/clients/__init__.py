"""The measured Python programs: each runs as a process and writes its figures to a file."""
