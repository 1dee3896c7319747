"""Every limit on connections, on time and on tries, in one table; REFERENCE.md prints it from here.

Keys of a stream (``max_connections``, ``timeout``, ``task_timeout``, ``connect_timeout``, ``response_timeout``)
override the defaults below. Sizes of buffers and pages are tuning and belong to their modules.

Read a limit as ``limits.NAME`` where it is used, so that a test can change it in one place.
"""

from datetime import timedelta

from include.log_rollup.units import KIB, MIB

# -- connections ---------------------------------------------------------------------------------------

DEFAULT_MAX_CONNECTIONS = 25
"""`pack_shard`: default of the stream's `max_connections`."""

WAIT_CONNECTIONS = 1
"""`wait_for_raw_hour`: connections, and slots of the pool."""

GROUP_WAIT_CONNECTIONS = 8
"""The same task of a stream whose `raw` has captures before the date; not more than its `max_connections`."""

CONTROL_CONNECTIONS = 4
"""`plan_hour`, `validate_hour`, `complete_hour`, `find_<stream>`: connections, and slots of the pool."""

GROUP_CONTROL_CONNECTIONS = 16
"""The same tasks of a stream whose `raw` has captures; not more than its `max_connections`, and at least 4."""

PACKING_CONTROL_CONNECTIONS = 1
"""`pack_shard`: connections of boto3 to each host, for receipts; raw objects and parts use the rest."""

PACKING_CONNECTING_THREADS = 8
"""`pack_shard`: connections that are opened at the same time; they count towards `max_connections`."""

POLL_THREADS = 2
"""Triggerer: threads per Airflow connection, however many hours wait; each lists one hour at a time."""

POLL_CONNECTIONS = 8
"""Triggerer: connections of each such thread; one, unless the hour's `raw` has captures before the date."""

MONTH_PAGE_CONNECTIONS = 4
"""Page Hours: connections of an api-server process for the months of all streams; without slots of the pool."""

HOUR_PAGE_CONNECTIONS = 1
"""Page Hours: connections for each hour that is being read."""

HOUR_PAGE_THREADS = 4
"""Page Hours: hours that one api-server process reads at the same time."""

OVERVIEW_PAGE_THREADS = 4
"""Page Hours: threads of an api-server process that read the hours of all streams, with one connection each."""

COMMAND_CONNECTIONS = 4
"""`./log-rollup`: connections of one command. It takes no slots of the pool."""

DOCTOR_CONTROL_CONNECTIONS = 2
"""`./log-rollup doctor`: connections of boto3; the rest of the command's are for probe transfers."""

# -- time: tasks and deferrals ---------------------------------------------------------------------------

WAIT_TASK_TIMEOUT = timedelta(minutes=10)
"""`wait_for_raw_hour`: execution timeout of a try on a worker, without the deferral."""

COMPLETE_TASK_TIMEOUT = timedelta(minutes=10)
"""`complete_hour`: execution timeout of a try."""

DEFERRAL_MARGIN = timedelta(minutes=15)
"""`wait_for_raw_hour`: a deferral ends this long after the stream's `timeout`, if the triggerer did not end it."""

CLOCK_MARGIN_SECONDS = 300.0
"""`wait_for_raw_hour`: the most by which S3's clock can prolong a wait beyond its whole length."""

LATE_RERUN_MARGIN = timedelta(hours=1)
"""`rerun_<stream>`: its deferral lasts at most the stream's `timeout`, 3 times `task_timeout`, and this."""

LATE_RERUN_TIMEOUT = timedelta(hours=20)
"""`rerun_<stream>`: its deferral never lasts longer. Less than the run's timeout, so that the task fails first."""

EXPIRY_RUN_TIMEOUT = timedelta(hours=23)
"""`log_rollup_expire`: timeout of a run, so that it ends before the next day's run starts."""

EXPIRY_APPROVAL_TIMEOUT = timedelta(hours=20)
"""`expire_raw`: how long it waits for an approval; then nothing is deleted, and the next run asks again."""

EXPIRY_TIME_SHARE = 0.8
"""`expire_raw`: after this share of the stream's `task_timeout` no hour is begun; the next run continues."""

LATE_RUN_TIMEOUT = timedelta(hours=23)
"""`log_rollup_late`: timeout of a run, so that it ends before the next day's run starts."""

# -- time: requests --------------------------------------------------------------------------------------

DEFAULT_CONNECT_TIMEOUT = timedelta(seconds=5)
"""Default of the stream's `connect_timeout`: for connecting, and again for the TLS handshake."""

DEFAULT_RESPONSE_TIMEOUT = timedelta(seconds=5)
"""Default of the stream's `response_timeout`: for the first byte of an object."""

DIRECT_LISTS_PAUSE_SECONDS = 10.0
"""With captures in `raw`: after a LIST that boto3 had to send again, it sends all for so long."""

ADDRESS_CONNECT_SECONDS = 1.5
"""`pack_shard`: the least time to connect to one of several addresses; TCP repeats a SYN after 1 s (RFC 6298)."""

CONTROL_READ_TIMEOUT_SECONDS = 60
"""boto3's read timeout, without a byte of the answer. Some servers hash what they list, which takes long."""

SLOWEST_BODY_BYTES_PER_SECOND = 256 * KIB
"""`pack_shard`: a request may take its size at this rate, twice `connect_timeout`, and `response_timeout`."""

SLOWEST_COPY_BYTES_PER_SECOND = 4 * MIB
"""`pack_shard`: the same rate for a copy by S3, which copies some hundred MB a second."""

IDLE_CONNECTION_SECONDS = 90
"""`pack_shard`: a connection that was idle for longer is not used again, because S3 may have closed it."""

TCP_KEEP_ALIVE_SECONDS = 30
"""`pack_shard`: idle time before TCP keep-alive probes, and the interval between them."""

# -- time: triggerer, page and commands ------------------------------------------------------------------

POLL_LISTING_SECONDS = 900.0
"""Triggerer: the most that one listing of an hour may take, including the wait for a free thread."""

LAST_POLL_LISTING_SECONDS = 60.0
"""Triggerer: how far the last listing may go beyond the deadline."""

POLL_REFUSED_SECONDS = 600.0
"""Triggerer: how long refusals are tried again; new keys may take minutes to be known everywhere."""

POLL_REFUSED_INTERVAL_SECONDS = 60.0
"""Triggerer: the most between two listings while they are refused."""

POLL_CLIENT_SECONDS = 600.0
"""Triggerer: age at which a client is replaced, so that it sees changes of the Airflow connection."""

POLL_FAILED_CLIENT_SECONDS = 30.0
"""Triggerer: age at which a failed client is replaced; each new one takes CPU time and may assume a role."""

PAGE_CONNECT_SECONDS = 3.0
"""Page Hours: connect timeout. A person waits, so it is shorter than that of a task."""

PAGE_READ_SECONDS = 5.0
"""Page Hours: read timeout of a request to S3."""

MONTH_PAGE_WAIT_SECONDS = 0.5
"""Page Hours: how long the answer for a month waits for the bucket; the page asks again for the rest."""

OVERVIEW_PAGE_WAIT_SECONDS = 0.5
"""Page Hours: how long the overview of all streams waits for buckets; the page asks again for the rest."""

OVERVIEW_PAGE_BUCKET_SECONDS = 5.0
"""Page Hours: how long a thread reads one bucket for the overview while others wait."""

HOUR_PAGE_QUEUE_SECONDS = 2.0
"""Page Hours: how long reading an hour waits for a free thread; then the answer is 503."""

HOUR_PAGE_READ_SECONDS = 15.0
"""Page Hours: how long reading an hour may take in all."""

HOUR_PAGE_RETRY_AFTER_SECONDS = 5
"""Page Hours: `Retry-After` of that 503; the page then asks again."""

# -- requests of a sample --------------------------------------------------------------------------------

DETECT_LIST_REQUESTS = 50
"""`./log-rollup detect`: the most LISTs of a sample of keys, however large the bucket is."""

DETECT_READ_REQUESTS = 10
"""`./log-rollup detect`: the most ranged GETs, of a few bytes each: the beginning and end of some objects."""

COST_MARKER_REQUESTS = 31 * 24
"""`./log-rollup cost`: the most completion markers that are read; of more hours, as many at equal intervals."""

COST_MANIFEST_REQUESTS = 8
"""`./log-rollup cost`: the most manifests that are read for the sizes of objects."""

# -- tries -----------------------------------------------------------------------------------------------

TASK_RETRIES = 4
"""Airflow's retries of a task; none where a retry cannot help."""

RERUN_RETRIES = 2
"""Airflow's retries of `rerun_<stream>`. They wait for the run that was started, which has its own retries."""

TASK_RETRY_DELAY = timedelta(seconds=30)
"""Delay before such a retry."""

THROTTLED_RETRY_DELAY = timedelta(minutes=2)
"""Delay before a retry when S3 asked to slow down."""

CONTROL_RETRIES = 6
"""boto3: retries of a request in the mode `standard`, unless the Airflow connection sets others.

With captures in `raw`, a LIST of a task has one try more.
"""

PAGE_TRIES = 2
"""Page Hours: tries of a request by boto3, whatever the Airflow connection sets."""

REQUEST_TRIES = 8
"""`pack_shard`: tries of each request for a raw object or a part; the waits between them add up to 25 to 51 s."""

REQUEST_FIRST_WAIT_SECONDS = 0.2
"""`pack_shard`: after try n, the wait is a random time between half and all of this times 2^n."""

REQUEST_LONGEST_WAIT_SECONDS = 30.0
"""`pack_shard`: the most to wait between two tries, also where S3's `Retry-After` asks for more."""

FOREIGN_TRIES = 4
"""boto3: tries of a LIST or GET whose response is not one of S3; the waits between them add up to 1.4 to 2.8 s."""

FOREIGN_FIRST_WAIT_SECONDS = 0.2
"""After try n of such a request, the wait is a random time between half and all of this times 2^n."""

DELETE_TRIES = 6
"""Tries of keys that DeleteObjects could not delete for the moment; the waits add up to 6 to 12 s."""

DELETE_FIRST_WAIT_SECONDS = 0.2
"""After try n of DeleteObjects, the wait is a random time between half and all of this times 2^n."""

PLAN_TRIES = 5
"""`plan_hour`: plans in one task, where other runs change the hour meanwhile."""

PLAN_FIRST_WAIT_SECONDS = 0.2
"""`plan_hour`: after plan n, the wait is a random time between half and all of this times 2^n."""

LATE_LISTING_TRIES = 5
"""`plan_hour`: listings until one has the claim that was just written; the waits add up to 3 to 6 s."""

LATE_LISTING_FIRST_WAIT_SECONDS = 0.2
"""After listing n of them, the wait is a random time between half and all of this times 2^n."""

REMOVAL_TRIES = 3
"""An overtaken run: how often it reads which parts the hour needs, before it leaves its own in place."""
