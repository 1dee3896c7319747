# The slim official image of the locked Airflow version: all other packages come from the locks.
# A tag can be moved. docs/DEPLOY.md says how to pin the digest, which is not known to this repository.
FROM apache/airflow:slim-3.3.2-python3.12

COPY --chown=airflow:0 requirements.txt requirements-fleet.txt /opt/log-rollup/
# The locks are complete. Without --no-deps, pip resolves `celery[redis]` again and refuses it as not pinned by hash.
RUN pip install --no-cache-dir --no-deps --require-hashes \
    -r /opt/log-rollup/requirements.txt -r /opt/log-rollup/requirements-fleet.txt

COPY --chown=airflow:0 dags /opt/log-rollup/dags
COPY --chown=airflow:0 plugins /opt/log-rollup/plugins
COPY --chown=airflow:0 include /opt/log-rollup/include
COPY --chown=airflow:0 deploy /opt/log-rollup/deploy
COPY --chown=airflow:0 dev /opt/log-rollup/dev
COPY --chown=airflow:0 log-rollup /opt/log-rollup/log-rollup
# A new volume gets the owner of the directory on which it is mounted.
RUN mkdir -p /opt/airflow/demo /opt/airflow/logs

# Every Airflow process imports the pipeline as include.log_rollup.
ENV PYTHONPATH=/opt/log-rollup \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/log-rollup/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/log-rollup/plugins \
    AIRFLOW__CORE__LOAD_EXAMPLES=False
