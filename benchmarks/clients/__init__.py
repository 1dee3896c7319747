"""The measured programs in Python: each runs as a process of its own and writes down what it used."""
