"""What connects the pipeline to Airflow: hook, transfer, operators, sensor, trigger, listener."""
