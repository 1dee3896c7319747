"""How fast the pack step is, beside everything else that one might use for its work, on one machine in one run."""
