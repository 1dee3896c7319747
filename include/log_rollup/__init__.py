"""The rollup pipeline without Airflow: streams, hours, plan, pack, validate, complete."""

__version__ = "0.1.0"
