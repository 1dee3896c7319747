"""What a deployment needs beside the Dags: the init step, keys, the least IAM policy, MWAA's files."""
