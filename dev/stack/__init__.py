"""The local stack: an S3 server and a real Airflow on one machine, without root or containers."""
