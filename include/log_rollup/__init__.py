"""The rollup pipeline without Airflow: streams, hours, plan, pack, validate, complete."""
