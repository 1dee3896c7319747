"""The demo command: rolls up made raw hours on the local stack and prints a table of the hours."""
