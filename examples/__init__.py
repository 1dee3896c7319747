"""Examples for consumers of complete hours: Dags for each hour and day, and a reader of an hour's parts."""
