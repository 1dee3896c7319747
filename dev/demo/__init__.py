"""The demo: made raw hours, a local S3 and a real Airflow on one machine, without root or containers."""
