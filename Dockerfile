# The official image of the locked Airflow, with exactly the packages of the lock.
FROM apache/airflow:3.3.2-python3.12

COPY --chown=airflow:0 requirements.txt /opt/log-rollup/requirements.txt
RUN pip install --no-cache-dir -r /opt/log-rollup/requirements.txt

COPY --chown=airflow:0 dags /opt/log-rollup/dags
COPY --chown=airflow:0 plugins /opt/log-rollup/plugins
COPY --chown=airflow:0 include /opt/log-rollup/include

# Every Airflow process imports the pipeline as include.log_rollup.
ENV PYTHONPATH=/opt/log-rollup \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/log-rollup/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/log-rollup/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=False
