"""Made raw hours: log files like those of a small fleet of hosts, and the streams file that reads them."""
