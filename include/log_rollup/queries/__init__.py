"""What can be asked about hours without changing them."""
