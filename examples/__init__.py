"""What comes after a complete hour: Dags that wait for hours and days, and a reader of an hour's parts."""
